"""Write captions: true sentences about a scene, 6 to 22 words long, in many variants.

Word order matters: "a red star passes a blue ring" and its swap have the same words but are different scenes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evilm.synth import words
from evilm.synth.world import ObjectSpec, Scene, choose, choose_weighted

T = TypeVar("T")

MIN_WORDS, MAX_WORDS = 6, 22
_DOUBLED = {"spin", "drop", "get"}
_LEADS = ("there {be}", "we see", "a video of")


@dataclass(frozen=True)
class _Clause:
    """A clause: the finite verb, its participle, and the rest, which fits both."""

    subject: str
    finite: str
    participle: str
    rest: str
    plural: bool = False


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write one true sentence about `scene`."""
    while True:
        caption = _sentence(scene, rng)
        if MIN_WORDS <= len(caption.split()) <= MAX_WORDS:
            return caption


def _sentence(scene: Scene, rng: np.random.Generator) -> str:
    clause = _clause(scene, rng)
    place = choose(rng, words.SCENES[scene.background]) if rng.random() < 0.94 else ""
    event = choose(rng, words.EVENTS[scene.event]) if scene.event and rng.random() < 0.85 else ""
    form = choose_weighted(rng, {"finite": 0.42, "fronted": 0.2, "fragment": 0.18, "lead": 0.2})
    if form == "fronted" and place:
        parts = [f"{place},", clause.subject, clause.finite, clause.rest, event]
    elif form == "finite" or form == "fronted":
        parts = [clause.subject, clause.finite, clause.rest, place, event]
    else:
        lead = choose(rng, _LEADS).format(be="are" if clause.plural else "is") if form == "lead" else ""
        parts = [lead, clause.subject, clause.participle, clause.rest, place, event]
    text = " ".join(" ".join(part for part in parts if part).split())
    return text[0].upper() + text[1:] + "."


def _clause(scene: Scene, rng: np.random.Generator) -> _Clause:
    main = scene.objects[0]
    if scene.layout == "group":
        subject = f"{choose(rng, words.COUNTS[len(scene.objects)])} {_noun(main, rng, plural=True)}"
        base, tail = _verb_phrase(main, scene.speed, rng)
        return _Clause(subject, base, participle(base), tail, plural=True)
    subject = _phrase(main, rng)
    if scene.layout in words.ACTIONS:
        return _action_clause(scene, subject, rng)
    base, tail = _verb_phrase(main, scene.speed, rng)
    if scene.layout == "solo":
        return _Clause(subject, third_person(base), participle(base), tail)
    return _place_clause(scene, subject, base, tail, rng)


def _action_clause(scene: Scene, subject: str, rng: np.random.Generator) -> _Clause:
    main, other = scene.objects[0], _phrase(scene.objects[1], rng)
    heading = ""
    if main.motion in words.HEADINGS and rng.random() < 0.75:
        heading = choose(rng, words.HEADINGS[main.motion])
    if scene.layout in words.PASSIVES and rng.random() < 0.3:
        verb = choose(rng, words.PASSIVES[scene.layout])
        return _Clause(other, f"is {verb}", verb, f"{subject} {heading}")
    base, tail = choose(rng, words.ACTIONS[scene.layout])
    return _Clause(subject, third_person(base), participle(base), f"{tail} {other} {heading}")


def _place_clause(scene: Scene, subject: str, base: str, tail: str, rng: np.random.Generator) -> _Clause:
    """Describe two objects beside or in front of each other, from the view of either."""
    second = scene.objects[1]
    other = _phrase(second, rng)
    other_base, other_tail = _verb_phrase(second, "", rng)
    if scene.layout == "beside" and (second.motion != "still" or rng.random() < 0.2):
        side = choose(rng, words.SIDES[scene.relation])
        rest = f"{tail} while {other} {third_person(other_base)} {other_tail} {side}"
        return _Clause(subject, third_person(base), participle(base), rest)
    if rng.random() < 0.3:
        place = choose(rng, words.PLACES[words.INVERSE_PLACES[scene.relation]])
        return _Clause(other, "is", "", f"{place} {subject} that {third_person(base)} {tail}")
    place = choose(rng, words.PLACES[scene.relation])
    return _Clause(subject, third_person(base), participle(base), f"{tail} {place} {other}")


def _verb_phrase(item: ObjectSpec, speed: str, rng: np.random.Generator) -> tuple[str, str]:
    base, tail = choose(rng, words.MOTIONS[item.motion])
    if speed and rng.random() < 0.5:
        tail = f"{tail} {choose(rng, words.SPEEDS[speed])}"
    return base, tail


def _phrase(item: ObjectSpec, rng: np.random.Generator) -> str:
    noun = _noun(item, rng)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _noun(item: ObjectSpec, rng: np.random.Generator, plural: bool = False) -> str:
    """Name colour and shape, sometimes also size and texture."""
    said = {"small": 0.8, "medium": 0.12, "large": 0.8}[item.size]
    size = choose(rng, words.SIZES[item.size]) if rng.random() < said else ""
    if item.motion in ("grow", "shrink"):
        size = ""
    texture = tail = ""
    if rng.random() < (0.08 if item.texture == "plain" else 0.85):
        if item.texture in words.TEXTURE_TAILS and rng.random() < 0.2:
            tail = choose(rng, words.TEXTURE_TAILS[item.texture])
        else:
            texture = choose(rng, words.TEXTURES[item.texture])
    colour = _usual(words.COLOURS[item.colour], rng)
    shape = _usual(words.SHAPES[item.shape], rng)[int(plural)]
    return " ".join(part for part in (size, texture, colour, shape, tail) if part)


def _usual(names: Sequence[T], rng: np.random.Generator) -> T:
    """Choose the usual name, or sometimes a synonym."""
    return names[0] if len(names) == 1 or rng.random() < 0.8 else choose(rng, names[1:])


def third_person(verb: str) -> str:
    """Conjugate: `move` -> `moves`, `fly` -> `flies`, `approach` -> `approaches`."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def participle(verb: str) -> str:
    """Form the participle: `move` -> `moving`, `spin` -> `spinning`."""
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"
