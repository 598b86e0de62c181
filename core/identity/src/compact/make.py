#!/usr/bin/env python3
"""Makes `federation.zdict` of `federation.txt`: `python3 make.py`, with libzstd where the system's loader finds it.

The text is what the dictionary says: what messages of federation have in common, the commonest last, where pointing
to it costs least. Before it zstd wants tables of how often each symbol occurs, which are counted here over made-up
messages, each after another one of its room, as nodes mostly send them. Nothing is random: a fixed seed.
"""

import base64
import ctypes
import json
import pathlib
import random

LEVEL = 6
# Any number will do: frames do not name it.
DICTIONARY_ID = 1

HERE = pathlib.Path(__file__).parent
RANDOM = random.Random(1)
Z_BASE_32 = "ybndrfg8ejkmcpqxot1uwisza345h769"
USERS = ["alice", "bob", "anna", "me", "chris", "maria", "ben"]
WORDS = """the a of and to in is you that it he was for on are with as I his they be at one have this from or had by hot
but some what there we can out other were all your when up use word how said an each she which do their time if will way
about many then them would like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find any new work part take get place made
live where after back little only round man year came show every good me give our under name very through just form much
great think say help low line before turn cause same mean differ move right boy old too does tell sentence set three want
air well also play small end put home read hand port large spell add even land here must big high such follow act why ask
men change went light kind off need house picture try us again animal point mother world near build self earth father
ja nein und der die das nicht ich du wir heute morgen gut danke bis oui non je tu est pas demain merci si mañana""".split()


def z_base_32(length):
    return "".join(RANDOM.choice(Z_BASE_32) for _ in range(length))


def base_64(length, encode=base64.b64encode):
    return encode(RANDOM.randbytes(length)).decode().rstrip("=")


def id_of(sigil):
    return sigil + base_64(32, base64.urlsafe_b64encode)


def text():
    words = " ".join(RANDOM.choice(WORDS) for _ in range(RANDOM.randint(1, 14)))
    return words.capitalize() + RANDOM.choice(["", "", ".", "?", "!", " 😀"])


class Room:
    """A room, and one of its members with a node."""

    def __init__(self):
        self.server = z_base_32(52)
        self.user = f"@{RANDOM.choice(USERS)}:{self.server}"
        self.key = "ed25519:" + z_base_32(8)
        self.id = id_of("!")
        self.auth = [id_of("$") for _ in range(RANDOM.choice([2, 2, 3]))]
        self.depth = RANDOM.randint(8, 5000)
        self.now = 1764000000000 + RANDOM.randint(0, 30 * 10**9)
        # The event that is known, which some of the others follow.
        self.last = id_of("$")

    def content(self):
        kind = RANDOM.random()
        if kind < 0.7:
            return "m.room.message", {"body": text(), "m.mentions": {}, "msgtype": "m.text"}
        if kind < 0.85:
            reply = {"m.in_reply_to": {"event_id": id_of("$")}}
            body = {"body": text(), "m.mentions": {}, "m.relates_to": reply, "msgtype": "m.text"}
            return "m.room.message", body
        if kind < 0.9:
            return "m.reaction", {"m.relates_to": {"event_id": id_of("$"), "key": "👍️", "rel_type": "m.annotation"}}
        return "m.room.encrypted", {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": base_64(RANDOM.choice([200, 240, 300])),
            "device_id": "KQWERTYUIO",
            "sender_key": base_64(32),
            "session_id": base_64(32),
        }

    def transaction(self):
        self.now += RANDOM.randint(900, 10**6)
        body = {"origin": self.server, "origin_server_ts": self.now + RANDOM.randint(1, 40), "pdus": []}
        if RANDOM.random() < 0.15:
            read = {"data": {"ts": self.now}, "event_ids": [id_of("$")]}
            receipt = {"content": {self.id: {"m.read": {self.user: read}}}, "edu_type": "m.receipt"}
            return as_bytes({**body, "edus": [receipt]})
        self.depth += 1
        kind, content = self.content()
        body["pdus"] = [
            {
                "auth_events": self.auth,
                "content": content,
                "depth": self.depth,
                "hashes": {},
                "origin_server_ts": self.now,
                "prev_events": [RANDOM.choice([self.last, id_of("$")])],
                "room_id": self.id,
                "sender": self.user,
                "signatures": {self.server: {self.key: base_64(64)}},
                "type": kind,
            }
        ]
        return as_bytes(body)


def as_bytes(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class Parameters(ctypes.Structure):
    _fields_ = [("level", ctypes.c_int), ("notifications", ctypes.c_uint), ("id", ctypes.c_uint)]


def finalize(content, samples):
    """A dictionary in zstd's format: its head with the tables, and the content."""
    zstd = ctypes.CDLL("libzstd.so.1")
    zstd.ZDICT_finalizeDictionary.restype = ctypes.c_size_t
    zstd.ZDICT_isError.argtypes = [ctypes.c_size_t]
    room = len(content) + 4096
    out = ctypes.create_string_buffer(room)
    sizes = (ctypes.c_size_t * len(samples))(*map(len, samples))
    size = zstd.ZDICT_finalizeDictionary(
        out,
        ctypes.c_size_t(room),
        content,
        ctypes.c_size_t(len(content)),
        b"".join(samples),
        sizes,
        ctypes.c_uint(len(samples)),
        Parameters(LEVEL, 0, DICTIONARY_ID),
    )
    assert not zstd.ZDICT_isError(size), "libzstd cannot make the dictionary"
    return out.raw[:size]


def main():
    content = (HERE / "federation.txt").read_bytes().replace(b"\n", b"")
    # Rooms of which one message is known, and the messages that follow.
    rooms = [Room() for _ in range(60)]
    before = b"".join(room.transaction() + room.last.encode() for room in rooms)
    after = [room.transaction() for room in rooms for _ in range(20)]
    after += [Room().transaction() for _ in range(300)]
    known = before + content
    head = finalize(known, after)[: -len(known)]
    (HERE / "federation.zdict").write_bytes(head + content)


if __name__ == "__main__":
    main()
