"""Frame shards and code shards: their schemas, their manifests, and how the two are paired.

A frame shard is a Parquet file with one row per clip; the code shard of the same name holds the codes of the same
clips in the same order and row groups. Readers see only what a manifest lists, and a manifest's fingerprint covers
the SHA-256 of every file it lists.
"""

from evilm.shards.files import (
    FRAMES_SCHEMA,
    SCHEMA_VERSION,
    VIEW,
    codes_schema,
    decode_frames,
    jpeg_side,
    open_shard,
    read_group,
    write_codes,
    write_frames,
)
from evilm.shards.manifests import MANIFEST, CodeShardInfo, CodesManifest, FrameManifest, ShardInfo
from evilm.shards.pairing import ShardPair, check_num_frames, codes_folder, find_codes, pair

__all__ = [
    "FRAMES_SCHEMA",
    "MANIFEST",
    "SCHEMA_VERSION",
    "VIEW",
    "CodeShardInfo",
    "CodesManifest",
    "FrameManifest",
    "ShardInfo",
    "ShardPair",
    "check_num_frames",
    "codes_folder",
    "codes_schema",
    "decode_frames",
    "find_codes",
    "jpeg_side",
    "open_shard",
    "pair",
    "read_group",
    "write_codes",
    "write_frames",
]
