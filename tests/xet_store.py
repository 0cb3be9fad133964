"""Where the Hub keeps large files of clients with `hf_xet`: the little of its version 1 protocol that a file needs.

A client cuts a file into chunks, packs these into "xorbs", and describes the file in a "shard": which chunks of which
xorbs it consists of, and its sha256. It gets the same description and the xorbs back.
https://huggingface.co/docs/xet
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

Answer = tuple[int, dict[str, str], bytes]
ENTRY = 48  # bytes of every entry of a shard, its header included
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class XetFile:
    """What stands for the bytes of a file that came by xet."""

    xet_hash: str
    sha256: str
    terms: tuple[tuple[str, int, int, int], ...]  # xorb, bytes, first chunk, chunk behind the last

    def __len__(self) -> int:
        return sum(size for _, size, _, _ in self.terms)


def hash_text(data: bytes) -> str:
    """xet writes a hash as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", data))


class XetStore:
    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, XetFile] = {}  # by sha256

    def answer(self, method: str, path: str, body: bytes, url: str) -> Answer | None:
        if method == "POST" and path.startswith("/v1/xorbs/"):
            self.xorbs[path.rpartition("/")[2]] = body
            return self._json({"was_inserted": True})
        if (method, path) == ("POST", "/v1/shards"):
            self._read_shard(body)
            return self._json({"result": 1})
        if method == "GET" and path.startswith("/v1/reconstructions/"):
            return self._reconstruct(path.rpartition("/")[2], url)
        if method == "GET" and path.startswith("/xorbs/"):
            return 200, {}, self.xorbs[path.rpartition("/")[2]]
        unknown = ("/v1/chunks/", "/v1/xorb-grants/", "/v2/")  # no deduplication across files, no later protocol
        return (404, {}, b"") if path.startswith(unknown) else None

    def _read_shard(self, shard: bytes) -> None:
        entries = [shard[start : start + ENTRY] for start in range(ENTRY, len(shard), ENTRY)]
        while (header := entries.pop(0))[:32] != b"\xff" * 32:
            flags, count = struct.unpack("<2I", header[32:40])
            terms = [(hash_text(entry[:32]), *struct.unpack("<4x3I", entry[32:])) for entry in entries[:count]]
            del entries[: count * (2 if flags & WITH_VERIFICATION else 1)]
            sha256 = hash_text(entries.pop(0)[:32]) if flags & WITH_SHA256 else ""
            self.files[sha256] = XetFile(hash_text(header[:32]), sha256, tuple(terms))

    def _reconstruct(self, xet_hash: str, url: str) -> Answer:
        file = next(file for file in self.files.values() if file.xet_hash == xet_hash)
        terms, fetch = [], {}
        for xorb, size, start, end in file.terms:
            offsets = self._chunk_offsets(self.xorbs[xorb])
            chunks = {"start": start, "end": end}
            terms.append({"hash": xorb, "unpacked_length": size, "range": chunks})
            span = {"start": offsets[start], "end": offsets[end] - 1}
            fetch.setdefault(xorb, []).append({"range": chunks, "url": f"{url}/xet/xorbs/{xorb}", "url_range": span})
        return self._json({"offset_into_first_range": 0, "terms": terms, "fetch_info": fetch})

    @staticmethod
    def _chunk_offsets(xorb: bytes) -> list[int]:
        """Where each chunk begins: every one has 8 bytes of header, with its size in bytes 1 to 3."""
        offsets = [0]
        while offsets[-1] < len(xorb):
            size = int.from_bytes(xorb[offsets[-1] + 1 : offsets[-1] + 4], "little")
            if xorb[offsets[-1] :].startswith(b"XETBLOB"):
                break
            offsets.append(offsets[-1] + 8 + size)
        return offsets

    @staticmethod
    def _json(value: object) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
