"""The words of the embedded corpus: names of each property of a scene. Data only, no logic.

Every key is a canonical name used by `world.py` and `render.py`; the values are the words of captions. The first entry
is the usual name, the others are synonyms.
"""

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("turquoise", "cyan"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black",),
}

SHAPES: dict[str, tuple[tuple[str, str], ...]] = {  # (singular, plural)
    "circle": (("circle", "circles"), ("ball", "balls")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"),),
    "diamond": (("diamond", "diamonds"),),
    "hexagon": (("hexagon", "hexagons"),),
    "heart": (("heart", "hearts"),),
    "crescent": (("crescent", "crescents"), ("moon", "moons")),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized",),
    "large": ("large", "big", "huge"),
}

TEXTURES: dict[str, tuple[str, ...]] = {  # adjectives; TEXTURE_TAILS follow the noun
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
TEXTURE_TAILS: dict[str, tuple[str, ...]] = {
    "striped": ("with stripes",),
    "dotted": ("with dots", "with spots"),
}

# Verb and the words after it; `grammar.py` conjugates the verb.
MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("move", "left"), ("slide", "to the left"), ("drift", "left"), ("travel", "from right to left")),
    "right": (("move", "right"), ("slide", "to the right"), ("drift", "right"), ("travel", "from left to right")),
    "up": (("rise", ""), ("move", "up"), ("climb", "upward"), ("float", "up")),
    "down": (("fall", ""), ("move", "down"), ("sink", "downward"), ("drop", "down")),
    "up_left": (("move", "up and to the left"), ("climb", "diagonally to the left"), ("rise", "to the left")),
    "up_right": (("move", "up and to the right"), ("climb", "diagonally to the right"), ("rise", "to the right")),
    "down_left": (("move", "down and to the left"), ("sink", "diagonally to the left"), ("fall", "to the left")),
    "down_right": (("move", "down and to the right"), ("sink", "diagonally to the right"), ("fall", "to the right")),
    "still": (("stand", "still"), ("rest", ""), ("stay", "in place"), ("wait", "without moving")),
    "spin": (("spin", ""), ("turn", "around"), ("rotate", "")),
    "grow": (("grow", ""), ("get", "bigger"), ("expand", ""), ("become", "larger")),
    "shrink": (("shrink", ""), ("get", "smaller"), ("become", "smaller")),
    "blink": (("blink", "on and off"), ("flash", ""), ("blink", "")),
    "bounce": (("bounce", ""), ("bounce", "up and down"), ("jump", "up and down")),
    "orbit": (("move", "in a circle"), ("go", "round and round")),
    "shake": (("tremble", ""), ("shake", ""), ("vibrate", "")),
    "appear": (("appear", ""), ("fade", "in"), ("come", "into view")),
    "vanish": (("vanish", ""), ("disappear", ""), ("fade", "away")),
}

SPEEDS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "gently"),
    "fast": ("quickly", "rapidly"),
}

# Relations in which the first object acts on the second: verb and preposition, followed by the second object.
ACTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "pass": (("pass", ""), ("move", "past"), ("slide", "past")),
    "toward": (("approach", ""), ("move", "towards"), ("come", "closer to")),
    "away": (("leave", ""), ("move", "away from")),
    "follow": (("follow", ""), ("chase", "")),
    "around": (("circle", ""), ("travel", "around")),
}
HEADINGS: dict[str, tuple[str, ...]] = {  # where an action goes
    "left": ("to the left", "from right to left"),
    "right": ("to the right", "from left to right"),
    "up": ("upward", "from bottom to top"),
    "down": ("downward", "from top to bottom"),
}
PASSIVES: dict[str, tuple[str, ...]] = {"follow": ("followed by", "chased by")}  # the second object is the subject

PLACES: dict[str, tuple[str, ...]] = {  # where the first object is, seen from the second
    "left_of": ("to the left of", "left of", "on the left side of"),
    "right_of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "front": ("in front of", "partly covering"),
    "behind": ("behind", "partly hidden by"),
}
INVERSE_PLACES = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
    "front": "behind",
    "behind": "front",
}
SIDES: dict[str, tuple[str, ...]] = {  # where the second object is, seen from the first
    "left_of": ("on the right", "on its right"),
    "right_of": ("on the left", "on its left"),
    "above": ("below it", "at the bottom"),
    "below": ("above it", "at the top"),
}

COUNTS: dict[int, tuple[str, ...]] = {2: ("two", "a pair of"), 3: ("three",)}

EVENTS: dict[str, tuple[str, ...]] = {
    "brighter": ("while it gets brighter", "as the scene brightens", "as the light comes on"),
    "darker": ("while it gets darker", "as the light fades", "as darkness falls", "while the scene darkens"),
}

SCENES: dict[str, tuple[str, ...]] = {
    "sand": ("on the sand", "on a sandy beach", "in the desert"),
    "grass": ("on green grass", "in a meadow", "in a grassy field"),
    "water": ("on the water", "over the sea", "above ocean waves"),
    "brick": ("in front of a brick wall", "against red bricks", "on a brick wall"),
    "night": ("in the starry sky", "among the stars", "in the night sky"),
    "snow": ("on the snow", "in fresh snow", "in a snowy field"),
    "wood": ("on a wooden floor", "on wooden planks", "against brown boards"),
    "checker": ("on a checkerboard", "on a chess board", "on black and white tiles"),
    "stripes": ("in front of a striped curtain", "against striped wallpaper", "on a carpet with stripes"),
    "clouds": ("in a cloudy sky", "among white clouds", "high in the clouds"),
    "lava": ("over hot lava", "above molten lava", "in a volcano"),
    "fog": ("in the fog", "in thick mist", "on a foggy day"),
    "dots": ("in front of a polka-dot curtain", "on a dotted carpet", "against spotted wallpaper"),
    "sunset": ("at sunset", "in the evening sky", "against an orange sunset"),
    "forest": ("in the forest", "among dark leaves", "in the jungle"),
    "stone": ("on cobblestones", "on a stone pavement", "on grey stones"),
}

# Colours that a person could not distinguish from the background.
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
