"""What the packed bytes of a frame say of its size, which a decoder believes over the data set."""

from itertools import pairwise

from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

# Markers of a JPEG file, before its first scan
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3}
FRAME_OF_JPEG_LS = 0xF7
PRESETS, OVERSIZE = 0xF8, 4  # of JPEG-LS: parameters, and the kind of them that is another size
SCAN = 0xDA
# Tables, restart interval, comment, and what programs add; without APP11, where JPEG XT goes on
OTHERS = {0xC4, 0xDB, 0xDD, 0xFE, PRESETS} | {*range(0xE0, 0xF0)} - {0xEB}
TILE_PIXELS = 1024  # the least that a tile may hold on average, where there are many
FREE_TILES = 64
START_OF_TILE, START_OF_DATA, END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
PRECINCTS = {b"\xff\x52": (4, 14), b"\xff\x53": (5, 11)}  # where style and sizes lie
FREE_PIECES, PIECE_PIXELS = 4096, 256
RLE_RATIO = 64  # two bytes become at most 128
FREE_RLE_BYTES = 2**27


def check_codestream(frame: bytes, syntax: UID, rows: int, columns: int) -> None:
    """Raise ValueError where a decoder would make anything but `rows` x `columns` grey pixels."""
    if syntax == RLELossless:
        _check_rle(frame, rows * columns)
        return
    if syntax in JPEG2000TransferSyntaxes:
        size = _size_of_jpeg_2000(frame)
    else:
        size = _size_of_jpeg(frame, syntax in JPEGLSTransferSyntaxes)
    if size != (rows, columns):
        raise ValueError(
            f"a frame is packed as {size[0]} x {size[1]} pixels, not as {rows} x {columns}"
        )


def _size_of_jpeg(frame: bytes, is_ls: bool) -> tuple[int, int]:
    """Rows and columns, which must be stated once, in a segment before the first scan."""
    allowed = {FRAME_OF_JPEG_LS} if is_ls else FRAMES
    size, at = None, 2
    if not frame.startswith(b"\xff\xd8"):
        raise ValueError("a frame is no JPEG")
    while True:
        while frame[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        marker, length = frame[at + 1 : at + 2], _number(frame, at + 2, 2)
        if frame[at : at + 1] != b"\xff" or not marker or length < 2:
            raise ValueError("a frame is damaged before its first scan")
        if marker[0] == SCAN and size:
            return size
        if marker[0] in allowed and size is None:
            size = _number(frame, at + 5, 2), _number(frame, at + 7, 2)
            if _number(frame, at + 9, 1) != 1:
                raise ValueError("a frame has several components")
        elif marker[0] not in OTHERS or (marker[0] == PRESETS and frame[at + 4] == OVERSIZE):
            raise ValueError(f"a frame has the segment {marker.hex()} before its first scan")
        at += 2 + length


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int]:
    """Rows and columns by the segment SIZ, which must come first."""
    if not frame.startswith(b"\xff\x4f\xff\x51"):
        raise ValueError("a frame is no codestream of JPEG 2000")
    right, bottom, left, top, width, height, tile_left, tile_top = (
        _number(frame, at, 4) for at in range(8, 40, 4)
    )
    if _number(frame, 40, 2) != 1 or frame[43:45] != b"\1\1":
        raise ValueError("a frame has several components or a coarser one")
    if not (width and height and tile_left <= left < right and tile_top <= top < bottom):
        raise ValueError("a frame is empty")
    rows, columns = bottom - top, right - left
    tiles = -((tile_top - bottom) // height) * -((tile_left - right) // width)
    if tiles > max(FREE_TILES, rows * columns // TILE_PIXELS):
        raise ValueError(f"a frame has {tiles} tiles of {width} x {height} pixels")
    _check_precincts(frame, rows, columns)
    return rows, columns


def _check_precincts(frame: bytes, rows: int, columns: int) -> None:
    """Check that the pieces of a frame are not far too many: a decoder makes an object of each."""
    at, end_of_tile = 2, 0
    while at < len(frame):
        marker = frame[at : at + 2]
        if marker == START_OF_DATA:
            if end_of_tile <= at:
                return  # the last one
            at = end_of_tile
            continue
        if marker == END:
            return
        following = at + 2 + _number(frame, at + 2, 2)
        if marker == START_OF_TILE:
            end_of_tile = at + _number(frame, at + 6, 4)
        elif marker in PRECINCTS:
            style, first = PRECINCTS[marker]
            sizes = frame[at + first : following] if frame[at + style] & 1 else b""
            coarsest = len(sizes) - 1  # sizes begin with that of the coarsest resolution
            pieces = sum(
                -(-rows // 2 ** (coarsest - level + (size >> 4)))
                * -(-columns // 2 ** (coarsest - level + (size & 15)))
                for level, size in enumerate(sizes)
            )
            if pieces > max(FREE_PIECES, rows * columns // PIECE_PIXELS):
                raise ValueError(f"a frame has {pieces} precincts")
        at = following


def _check_rle(frame: bytes, pixels: int) -> None:
    """Check that no segment unpacks to more than a byte for each pixel, and padding."""
    if len(frame) * RLE_RATIO <= FREE_RLE_BYTES:
        return
    segments = min(_number(frame, 0, 4, "little"), 15)
    starts = [_number(frame, 4 + 4 * index, 4, "little") for index in range(segments)]
    for at, stop in pairwise([*starts, len(frame)]):
        stop, count = min(stop, len(frame)), 0
        while at < stop - 1 and count <= pixels + 1:
            control = frame[at]
            at += control + 2 if control < 128 else 1 + (control > 128)
            count += control + 1 if control < 128 else (257 - control) % 129
        if count > pixels + 1:
            raise ValueError("a frame unpacks to more pixels than it has")


def _number(data: bytes, at: int, size: int, order: str = "big") -> int:
    part = data[at : at + size]
    if len(part) < size:
        raise ValueError("a frame is cut short")
    return int.from_bytes(part, "little" if order == "little" else "big")
