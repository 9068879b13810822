"""The embedded corpus: a seeded world of textured objects, captioned and rendered to H.264 clips.

`words` names things, `world` says what a scene is, `scenes` draws one, `grammar` tells it, `render` paints it,
`h264` packs it, `corpus_plan` ties them together.
"""

from evilm.synth.corpus_plan import (
    MANIFEST_NAME,
    VIDEOS_NAME,
    PlannedClip,
    clip_frames,
    manifest_csv,
    plan_corpus,
    render_and_write,
    render_clip,
    write_manifests,
)

__all__ = [
    "MANIFEST_NAME",
    "VIDEOS_NAME",
    "PlannedClip",
    "clip_frames",
    "manifest_csv",
    "plan_corpus",
    "render_and_write",
    "render_clip",
    "write_manifests",
]
