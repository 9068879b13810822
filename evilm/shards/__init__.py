"""Frame shards and code shards: their schemas, their manifests, and how the two are paired.

A frame shard is a Parquet file with one row per clip; the code shard of the same name holds the codes of the same
clips in the same order and row groups. Readers see only what a manifest lists, and a manifest's fingerprint covers
the SHA-256 of every file it lists.
"""

from evilm.shards.pairing import ShardPair, check_num_frames, codes_folder, find_codes, pair
from evilm.shards.shard_files import (
    FRAMES_SCHEMA,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    VIEW,
    codes_schema,
    open_shard,
    read_columns,
    read_footer,
    read_group,
    read_histogram,
    stored_columns,
    with_captions,
    write_codes,
    write_frames,
)
from evilm.shards.shard_manifests import (
    MANIFEST,
    CodeShardInfo,
    CodesManifest,
    FrameManifest,
    ShardInfo,
    find_lost,
    is_published,
    pinned,
)
from evilm.shards.side_files import Captions, Footers, Side, open_side, publish_side
from evilm.shards.stored_jpegs import decode_frames, jpeg_side
