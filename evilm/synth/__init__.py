"""The embedded corpus: a seeded world of textured objects, captioned and rendered to H.264 clips.

`world` defines a scene and `words` its vocabulary; `scenes` samples scenes, `grammar` writes captions, `render` draws
frames, `h264` encodes them, and `corpus_plan` plans the whole corpus.
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
