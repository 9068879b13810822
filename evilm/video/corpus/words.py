"""The words of the embedded corpus: what each property of a scene may be called. Data only, no logic.

Every key is a canonical name used by `world.py` and `render.py`; the values are what captions say. The first entry
is the usual name, the others are its synonyms.
"""

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("turquoise", "cyan"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "snow-white"),
    "black": ("black", "jet-black"),
}

SHAPES: dict[str, tuple[tuple[str, str], ...]] = {  # (singular, plural)
    "circle": (("circle", "circles"), ("disc", "discs"), ("ball", "balls")),
    "square": (("square", "squares"), ("box", "boxes"), ("block", "blocks")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "hexagon": (("hexagon", "hexagons"),),
    "heart": (("heart", "hearts"),),
    "crescent": (("crescent", "crescents"), ("moon", "moons")),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized",),
    "large": ("large", "big", "huge"),
}

TEXTURES: dict[str, tuple[str, ...]] = {  # adjectives; TEXTURE_TAILS are said behind the noun
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "speckled"),
}
TEXTURE_TAILS: dict[str, tuple[str, ...]] = {
    "striped": ("with stripes",),
    "dotted": ("with dots", "with spots"),
}

# Verb and what follows it; `grammar.py` conjugates the verb.
MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("move", "left"), ("slide", "to the left"), ("glide", "leftward"), ("drift", "left"), ("go", "to the left"),
             ("travel", "from right to left")),
    "right": (("move", "right"), ("slide", "to the right"), ("glide", "rightward"), ("drift", "right"),
              ("go", "to the right"), ("travel", "from left to right")),
    "up": (("rise", ""), ("move", "up"), ("climb", "upward"), ("float", "up"), ("go", "up"), ("ascend", "")),
    "down": (("fall", ""), ("move", "down"), ("sink", "downward"), ("drop", "down"), ("go", "down"), ("descend", "")),
    "up_left": (("move", "up and to the left"), ("climb", "diagonally to the left"), ("fly", "to the upper left"),
                ("rise", "to the left")),
    "up_right": (("move", "up and to the right"), ("climb", "diagonally to the right"), ("fly", "to the upper right"),
                 ("rise", "to the right")),
    "down_left": (("move", "down and to the left"), ("slide", "diagonally down to the left"),
                  ("fly", "to the lower left"), ("fall", "to the left")),
    "down_right": (("move", "down and to the right"), ("slide", "diagonally down to the right"),
                   ("fly", "to the lower right"), ("fall", "to the right")),
    "still": (("stand", "still"), ("rest", ""), ("stay", "in place"), ("remain", "still"), ("wait", "without moving"),
              ("sit", "motionless")),
    "spin": (("spin", ""), ("turn", "around"), ("rotate", ""), ("whirl", ""), ("twirl", "")),
    "grow": (("grow", ""), ("get", "bigger"), ("expand", ""), ("swell", ""), ("become", "larger")),
    "shrink": (("shrink", ""), ("get", "smaller"), ("contract", ""), ("dwindle", ""), ("become", "smaller")),
    "blink": (("blink", "on and off"), ("flash", ""), ("flicker", ""), ("blink", "")),
    "bounce": (("bounce", ""), ("bounce", "up and down"), ("hop", ""), ("jump", "up and down")),
    "orbit": (("move", "in a circle"), ("loop", "around"), ("go", "round and round")),
    "shake": (("tremble", ""), ("shake", ""), ("vibrate", ""), ("shiver", "")),
    "appear": (("appear", ""), ("fade", "in"), ("emerge", ""), ("come", "into view")),
    "vanish": (("vanish", ""), ("disappear", ""), ("fade", "away"), ("fade", "out")),
}

SPEEDS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "gently", "gradually"),
    "fast": ("quickly", "swiftly", "fast", "rapidly"),
}

# Relations of two objects in which the first one acts on the second: verb and preposition, second object behind it.
ACTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "pass": (("pass", ""), ("move", "past"), ("slide", "past"), ("go", "by")),
    "toward": (("approach", ""), ("move", "towards"), ("come", "closer to"), ("travel", "toward")),
    "away": (("leave", ""), ("move", "away from"), ("depart", "from"), ("retreat", "from")),
    "follow": (("follow", ""), ("chase", ""), ("trail", "behind"), ("go", "after")),
    "around": (("circle", ""), ("orbit", ""), ("travel", "around"), ("revolve", "around")),
}
HEADINGS: dict[str, tuple[str, ...]] = {  # where an action goes
    "left": ("to the left", "from right to left", "leftward"),
    "right": ("to the right", "from left to right", "rightward"),
    "up": ("upward", "from bottom to top"),
    "down": ("downward", "from top to bottom"),
}
PASSIVES: dict[str, tuple[str, ...]] = {"follow": ("followed by", "chased by")}  # the second object is the subject

PLACES: dict[str, tuple[str, ...]] = {  # where the first object is, seen from the second
    "left_of": ("to the left of", "left of", "on the left side of"),
    "right_of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "high above"),
    "below": ("below", "under", "beneath"),
    "front": ("in front of", "partly covering"),
    "behind": ("behind", "partly hidden by"),
}
INVERSE_PLACES = {
    "left_of": "right_of", "right_of": "left_of", "above": "below", "below": "above", "front": "behind",
    "behind": "front",
}
SIDES: dict[str, tuple[str, ...]] = {  # where the second object is, seen from the first
    "left_of": ("on the right", "on its right"),
    "right_of": ("on the left", "on its left"),
    "above": ("below it", "at the bottom"),
    "below": ("above it", "at the top"),
}

COUNTS: dict[int, tuple[str, ...]] = {2: ("two", "a pair of", "a couple of"), 3: ("three", "a trio of")}

EVENTS: dict[str, tuple[str, ...]] = {
    "brighter": ("while it gets brighter", "as the scene brightens", "as the light comes on"),
    "darker": ("while it gets darker", "as the light fades", "as darkness falls", "while the scene darkens"),
}

SCENES: dict[str, tuple[str, ...]] = {
    "sand": ("on the sand", "on a sandy beach", "in the desert", "over sand dunes"),
    "grass": ("on green grass", "in a meadow", "on a lawn", "in a grassy field"),
    "water": ("on the water", "over the sea", "above ocean waves", "on a blue lake"),
    "brick": ("in front of a brick wall", "against red bricks", "on a brick wall", "before a wall of bricks"),
    "night": ("in the starry sky", "among the stars", "in the night sky", "in outer space"),
    "snow": ("on the snow", "in fresh snow", "in a snowy field", "on winter snow"),
    "wood": ("on a wooden floor", "on wooden planks", "on a wooden table", "against brown boards"),
    "checker": ("on a checkerboard", "on a chess board", "on black and white tiles", "on a tiled floor"),
    "stripes": ("in front of a striped curtain", "against striped wallpaper", "on a carpet with stripes"),
    "clouds": ("in a cloudy sky", "among white clouds", "high in the clouds", "in the daytime sky"),
    "lava": ("over hot lava", "above molten lava", "in a volcano", "on glowing magma"),
    "fog": ("in the fog", "in thick mist", "in grey haze", "on a foggy day"),
    "dots": ("in front of a polka-dot curtain", "on a dotted carpet", "against spotted wallpaper"),
    "sunset": ("at sunset", "in the evening sky", "against an orange sunset", "at dusk"),
    "forest": ("in the forest", "among dark leaves", "in the jungle", "in front of a leafy hedge"),
    "stone": ("on cobblestones", "on a stone pavement", "on grey stones", "on a rocky street"),
}

# Colours that a person could not tell from the scene's own.
CAMOUFLAGE: dict[str, tuple[str, ...]] = {
    "sand": ("yellow", "orange"),
    "grass": ("green",),
    "water": ("blue", "cyan"),
    "brick": ("red", "orange"),
    "night": ("black", "white"),
    "snow": ("white",),
    "wood": ("orange",),
    "checker": ("black", "white"),
    "stripes": ("purple", "pink"),
    "clouds": ("white", "blue", "cyan"),
    "lava": ("red", "orange", "yellow", "black"),
    "fog": ("white",),
    "dots": ("yellow", "cyan"),
    "sunset": ("orange", "pink", "red", "purple"),
    "forest": ("green", "black"),
    "stone": (),
}
