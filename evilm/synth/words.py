"""The words of the embedded corpus, from `words.yaml`: names of each property of a scene."""

from importlib.resources import files
from typing import Any

import yaml

_TABLES: dict[str, Any] = yaml.safe_load(files("evilm.synth").joinpath("words.yaml").read_text("utf-8"))

COLOURS: dict[str, list[str]] = _TABLES["colours"]
SHAPES: dict[str, list[list[str]]] = _TABLES["shapes"]
SIZES: dict[str, list[str]] = _TABLES["sizes"]
TEXTURES: dict[str, list[str]] = _TABLES["textures"]
TEXTURE_TAILS: dict[str, list[str]] = _TABLES["texture_tails"]
MOTIONS: dict[str, list[list[str]]] = _TABLES["motions"]
SPEEDS: dict[str, list[str]] = _TABLES["speeds"]
ACTIONS: dict[str, list[list[str]]] = _TABLES["actions"]
HEADINGS: dict[str, list[str]] = _TABLES["headings"]
PASSIVES: dict[str, list[str]] = _TABLES["passives"]
PLACES: dict[str, list[str]] = _TABLES["places"]
INVERSE_PLACES: dict[str, str] = _TABLES["inverse_places"]
SIDES: dict[str, list[str]] = _TABLES["sides"]
COUNTS: dict[int, list[str]] = _TABLES["counts"]
EVENTS: dict[str, list[str]] = _TABLES["events"]
SCENES: dict[str, list[str]] = _TABLES["scenes"]
CAMOUFLAGE: dict[str, list[str]] = _TABLES["camouflage"]
