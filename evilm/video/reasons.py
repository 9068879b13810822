"""Reasons for quarantining a row of a manifest, and flags of kept clips."""

from enum import IntFlag, StrEnum


class RejectReason(StrEnum):
    """Reason for quarantining a row. Quarantine tables and summaries hold the value."""

    BAD_ROW = "bad_row"
    """The CSV record can't be read: wrong number of columns, or not UTF-8."""
    MISSING_ID = "missing_id"
    """The row has no id."""
    DUPLICATE_ID = "duplicate_id"
    """An earlier row has the same id; the detail names it."""
    EMPTY_CAPTION = "empty_caption"
    """The caption has no visible characters."""
    BAD_CAPTION = "bad_caption"
    """The caption contains a NUL character."""
    PATH_UNSAFE = "path_unsafe"
    """The path leaves the video root."""
    MISSING_FILE = "missing_file"
    """There is no video with that name below the video root."""
    NOT_A_FILE = "not_a_file"
    """The path is a folder or a device."""
    FETCH_ERROR = "fetch_error"
    """The file exists but can't be read, after retries."""
    FETCH_TIMEOUT = "fetch_timeout"
    """The server did not send the file in time, after retries."""
    SOURCE_CHANGED = "source_changed"
    """The tar was rewritten after it was listed: something else is at the video's offset."""
    FORBIDDEN_ADDRESS = "forbidden_address"
    """The URL leads to this machine or a private network."""
    TOO_LARGE = "too_large"
    """More bytes or pixels than allowed."""
    BAD_SPAN = "bad_span"
    """Start and end of the span can't be read, or select nothing of the video."""
    EMPTY_FILE = "empty_file"
    """The file has no bytes."""
    NOT_A_VIDEO = "not_a_video"
    """The content is not a video."""
    UNREADABLE_CONTAINER = "unreadable_container"
    """The video container can't be opened."""
    NO_VIDEO_STREAM = "no_video_stream"
    """The container has no picture track."""
    TRUNCATED = "truncated"
    """The container announces more bytes than the file has."""
    TOO_SHORT = "too_short"
    """The clip has fewer than two frames."""
    TOO_SMALL = "too_small"
    """A side is shorter than sampling.min_side_px."""
    RESOLUTION_CHANGE = "resolution_change"
    """The picture size changes within the clip."""
    DECODE_ERROR = "decode_error"
    """The decoder failed."""
    DECODE_CORRUPT = "decode_corrupt"
    """A sampled frame, or one it depends on, is damaged."""
    DECODE_TIMEOUT = "decode_timeout"
    """Decoding took more CPU time than sampling.decode_timeout_s or hung, twice."""
    DECODER_CRASH = "decoder_crash"
    """The decoding process crashed on this clip, twice."""


class ClipFlag(IntFlag):
    """Special properties of a kept clip, stored as bits in the `flags` column."""

    REPEATED = 1
    """The clip has fewer frames than wanted, so some are stored repeatedly."""
    ROTATED = 2
    """Frames were rotated or mirrored by the container's metadata."""
    VFR = 4
    """Gaps between frames differ by more than a quarter."""
    MEASURED = 8
    """The container's times were not reliable; the whole clip was decoded to measure them."""
    EDIT_LIST = 16
    """The container hides a part of the clip, which was skipped."""
    OPEN_GOP = 32
    """Frames shown before a key frame depend on it."""
    ANAMORPHIC = 64
    """Pixels are not square; the crop corrects for it."""
    HDR = 128
    """High dynamic range (PQ or HLG): stored as decoded, without tone mapping, so colours look flat."""

    @classmethod
    def names(cls, bits: int) -> list[str]:
        """Return the names of the set bits, for reports."""
        return [str(flag.name).lower() for flag in cls if flag & bits]
