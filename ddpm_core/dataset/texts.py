"""The texts that an image file carries, by name, within bounds of memory and time. What they mean is in programs.py.

PNG's texts go by their keyword, EXIF's and XMP's by the name of the field, all in lower case; what is hidden in the last
bits of the pixels is ``stealth``.
"""

from __future__ import annotations

import html
import struct
import zlib
from collections import Counter

import numpy as np
from PIL import Image

from .exif import TooManyPieces
from .structure import MOST_PIECES

MAX_TEXT_BYTES = 64 * 1024  # of a prompt with its settings
MAX_JSON_BYTES = 2**20  # of a graph of nodes; those of large workflows have some hundred kilobytes

# PNG keywords that some program writes its prompt into
_KEYWORDS = frozenset(
    {"parameters", "prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "sampler_name",
     "use_stable_diffusion_model", "invokeai_metadata", "sd-metadata", "dream", "comment", "description", "software",
     "usercomment", "xml:com.adobe.xmp"}
)  # fmt: skip
_MOST_TRIES = 4  # at the texts of one keyword: inflating each of a hundred thousand would take minutes
_COLOUR_CHUNKS = frozenset({b"sRGB", b"gAMA", b"cHRM", b"cICP", b"iCCP"})
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
_MAX_COLOUR_BYTES = 4 * 2**20
_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_EXIF_TEXTS = {0x010E: "imagedescription", 0x010F: "make", 0x0110: "model"}
_XMP_FIELDS = {"exif:UserComment": "usercomment", "dc:description": "description", "xmp:CreatorTool": "software"}

_STEALTH = {  # signature: whether in alpha, whether compressed (ashen-sensored/sd_webui_stealth_pnginfo)
    b"stealth_pnginfo": (True, False),
    b"stealth_pngcomp": (True, True),
    b"stealth_rgbinfo": (False, False),
    b"stealth_rgbcomp": (False, True),
}
_SIGNATURE_BITS = 8 * 15


def png_parts(data: bytes) -> tuple[dict[str, str], dict[bytes, bytes], bytes]:
    """A PNG's texts, its chunks that tell of colours, and of the file only what the pixels and the EXIF are read from.

    Pillow inflates every text and profile and refuses the whole image when one is a bomb, and fills the canvas of an
    animation as soon as it opens it; here inflating is bounded, a text over the bound is dropped, and the pixels are kept.
    """
    texts: dict[str, str] = {}
    tried: Counter[str] = Counter()
    colours: dict[bytes, bytes] = {}
    whole = memoryview(data)
    pieces = [whole[:8]]
    offset = 8
    count = 0
    while offset + 8 <= len(data):
        count += 1
        if count > MOST_PIECES:
            raise TooManyPieces
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        begin, end = offset + 8, offset + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = data[begin : begin + min(length, 80)].partition(b"\0")[0].decode("latin-1").lower()
            tried[keyword] += keyword in _KEYWORDS
            if keyword in _KEYWORDS and keyword not in texts and tried[keyword] <= _MOST_TRIES:
                text = _png_text(kind, data[begin : begin + min(length, MAX_JSON_BYTES + 256)], length)
                if text:
                    texts[keyword] = text
        elif kind in _COLOUR_CHUNKS:
            if kind not in colours and length <= _MAX_COLOUR_BYTES:
                body = data[begin : begin + length]
                colours[kind] = _profile_of(body) if kind == b"iCCP" else body
        elif kind in _PIXEL_CHUNKS:
            pieces.append(whole[offset:end])
        if kind == b"IEND" or end > len(data):
            break
        offset = end
    if "xml:com.adobe.xmp" in texts:
        texts = {**xmp_texts(texts.pop("xml:com.adobe.xmp")), **texts}
    return texts, colours, b"".join(pieces)


def _profile_of(body: bytes) -> bytes:
    """The ICC profile of an iCCP chunk: name, 0, method 0, zlib stream."""
    _, _, rest = body.partition(b"\0")
    try:
        return _inflate(rest[1:], _MAX_COLOUR_BYTES)
    except zlib.error:
        return b""


def _png_text(kind: bytes, body: bytes, length: int) -> str:
    """The text of a text chunk; empty where it is damaged, or longer than any is."""
    rest = body.partition(b"\0")[2]
    most = MAX_JSON_BYTES
    try:
        if kind == b"tEXt":
            found = rest if length <= most else b""
        elif kind == b"zTXt":
            found = _inflate(rest[1:], most)
        else:
            compressed, rest = rest[0], rest[2:]
            _language, _, rest = rest.partition(b"\0")
            _translated, _, rest = rest.partition(b"\0")
            found = _inflate(rest, most) if compressed else rest if length <= most else b""
    except (zlib.error, IndexError):
        return ""
    return bounded(found.decode("utf-8", "replace") if kind == b"iTXt" else _latin_or_utf8(found))


def _latin_or_utf8(data: bytes) -> str:
    """A tEXt is Latin-1, but programs write UTF-8 into it; what is valid UTF-8 with bytes over 127 is never Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def bounded(text: str) -> str:
    """The text, or an empty one where it is longer than any of its kind is."""
    most = MAX_JSON_BYTES if text.lstrip()[:1] in ("{", "[") else MAX_TEXT_BYTES
    return text if len(text) <= most else ""


def _inflate(data: bytes, most: int) -> bytes:
    worker = zlib.decompressobj(47)  # zlib or gzip
    out = worker.decompress(data, most)
    return b"" if worker.unconsumed_tail else out


def texts_of(image: Image.Image, data: bytes) -> dict[str, str]:
    """EXIF's, XMP's and the comment of an opened picture; of EXIF only what :func:`.exif.check_exif` has let through."""
    texts: dict[str, str] = {}
    begin = data.find(b"<x:xmpmeta")
    if begin >= 0:
        texts = xmp_texts(data[begin : begin + MAX_JSON_BYTES].decode("utf-8", "replace"))
    comment = image.info.get("comment", b"")
    if isinstance(comment, bytes) and 0 < len(comment) <= MAX_TEXT_BYTES:
        texts["comment"] = comment.decode("utf-8", "replace")
    try:
        exif = image.getexif()
        fields = {name: exif.get(tag) for tag, name in _EXIF_TEXTS.items()}
        fields["usercomment"] = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception:  # damaged EXIF raises all sorts; the picture may still be fine
        fields = {}
    for name, value in fields.items():
        if isinstance(value, bytes) and len(value) <= 2 * MAX_JSON_BYTES:
            value = decode_user_comment(value) if name == "usercomment" else value.decode("utf-8", "replace")
        if isinstance(value, str) and value:
            texts[name] = bounded(_unpatched(value).strip("\0"))
    return texts


def _unpatched(text: str) -> str:
    """Pillow reads EXIF's ASCII as Latin-1, into which programs write UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def decode_user_comment(raw: bytes) -> str:
    """EXIF UserComment: 8 bytes naming the character code, then the text; UNICODE is UTF-16 of either byte order."""
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace")
        # mostly ASCII in practice: the zero bytes tell the order
        big = body[0::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if big else "utf-16-le", "replace")
    if code == b"ASCII\0\0\0":
        return body.decode("utf-8", "replace").rstrip("\0")
    return raw.decode("utf-8", "replace").strip("\0")


def xmp_texts(packet: str) -> dict[str, str]:
    """Comment, description and program of an XMP packet (ISO 16684-1), as elements or as attributes.

    Searched and not parsed: it is XML of anybody's, and three fields are wanted.
    """
    found: dict[str, str] = {}
    for field, name in _XMP_FIELDS.items():
        begin = packet.find(f"<{field}")
        end = packet.find(f"</{field}>", begin) if begin >= 0 else -1
        if end >= 0:
            value = _without_tags(packet[begin:end])
        else:
            begin = packet.find(f'{field}="')
            end = packet.find('"', begin + len(field) + 2) if begin >= 0 else -1
            value = packet[begin + len(field) + 2 : end] if end >= 0 else ""
        value = bounded(html.unescape(value).strip())
        if value:
            found[name] = value
    return found


def _without_tags(text: str) -> str:
    return "".join(piece.rpartition(">")[2] for piece in text.split("<"))


def stealth_text(image: Image.Image) -> str:
    """The text hidden in the last bits of a lossless picture's alpha or colours, column by column, or an empty one.

    As NovelAI, Forge and the stealth PNG info extension write it: a signature, 32 bits with the number of bits, the text.
    """
    if image.mode not in ("RGB", "RGBA"):
        return ""
    for signature, (in_alpha, compressed) in _STEALTH.items():
        if in_alpha and image.mode != "RGBA":
            continue
        if _hidden(image, in_alpha, 0, _SIGNATURE_BITS) != signature:
            continue
        count = int.from_bytes(_hidden(image, in_alpha, _SIGNATURE_BITS, 32), "big")
        if not 0 < count <= 8 * MAX_JSON_BYTES:
            return ""
        found = _hidden(image, in_alpha, _SIGNATURE_BITS + 32, count)
        try:
            text = _inflate(found, MAX_JSON_BYTES) if compressed else found
        except zlib.error:
            return ""
        return bounded(text.decode("utf-8", "replace"))
    return ""


def _hidden(image: Image.Image, in_alpha: bool, start: int, count: int) -> bytes:
    """``count`` hidden bits from ``start`` on, as bytes; fewer where the picture ends."""
    a_column = image.height * (1 if in_alpha else 3)
    first, last = start // a_column, -(-(start + count) // a_column)
    columns = np.asarray(image.crop((min(first, image.width), 0, min(last, image.width), image.height)))
    if not columns.size:
        return b""
    chosen = columns[..., 3:] if in_alpha else columns[..., :3]
    bits = (chosen.transpose(1, 0, 2).ravel() & 1)[start - first * a_column :][:count]
    return np.packbits(bits).tobytes()
