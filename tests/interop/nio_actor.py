"""matrix-nio played by the scenario: orders come as JSON lines on stdin, answers and events go out on stdout."""

import asyncio
import hashlib
import io
import json
import os
import sys

from nio import (
    AsyncClient,
    AsyncClientConfig,
    InviteMemberEvent,
    LoginResponse,
    MegolmEvent,
    ReactionEvent,
    ReceiptEvent,
    RedactionEvent,
    RoomEncryptedImage,
    RoomMessageText,
    TypingNoticeEvent,
)
from nio.crypto.attachments import decrypt_attachment

ENCRYPTION = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def checked(response):
    """nio returns its errors; the scenario wants them raised."""
    if "Error" in type(response).__name__:
        raise RuntimeError(f"{type(response).__name__}: {response}")
    return response


class Actor:
    def __init__(self):
        self.client = None
        self.synced = asyncio.Condition()
        # Text messages whose keys came after them are decrypted when the keys do.
        self.undecrypted = {}

    async def login(self, url, user_id, password, store):
        # Requests to a node that is down are tried again for as long as the scenario waits.
        config = AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True, max_timeouts=0, backoff_factor=0.05, max_timeout_retry_wait_time=0.5)
        self.client = AsyncClient(url, user_id, store_path=store, config=config)
        response = await self.client.login(password, device_name="nio")
        if not isinstance(response, LoginResponse):
            raise RuntimeError(str(response))
        self.client.add_event_callback(self.on_text, RoomMessageText)
        self.client.add_event_callback(self.on_image, RoomEncryptedImage)
        self.client.add_event_callback(self.on_undecryptable, MegolmEvent)
        self.client.add_event_callback(self.on_reaction, ReactionEvent)
        self.client.add_event_callback(self.on_redaction, RedactionEvent)
        self.client.add_event_callback(self.on_invite, InviteMemberEvent)
        self.client.add_ephemeral_callback(self.on_typing, TypingNoticeEvent)
        self.client.add_ephemeral_callback(self.on_receipt, ReceiptEvent)
        await self.client.sync(timeout=0, full_state=True)
        asyncio.create_task(self.sync_for_ever())
        return {"device_id": response.device_id}

    async def sync_for_ever(self):
        while True:
            try:
                if self.client.should_upload_keys:
                    await self.client.keys_upload()
                if self.client.should_query_keys:
                    await self.client.keys_query()
                if self.client.should_claim_keys:
                    await self.client.keys_claim(self.client.get_users_for_key_claiming())
                await self.client.send_to_device_messages()
                response = await self.client.sync(timeout=20000)
                if "Error" in type(response).__name__:
                    say({"event": "sync_error", "error": str(response)})
                    await asyncio.sleep(0.1)
            except (OSError, asyncio.TimeoutError) as error:
                say({"event": "offline", "error": str(error)})
                await asyncio.sleep(0.1)
            except Exception as error:  # A node that died in mid-answer shows as any of aiohttp's errors.
                say({"event": "sync_error", "error": repr(error)})
                await asyncio.sleep(0.1)
            await self.retry_undecrypted()
            async with self.synced:
                self.synced.notify_all()

    async def retry_undecrypted(self):
        for event_id, (room, event) in list(self.undecrypted.items()):
            try:
                decrypted = self.client.decrypt_event(event)
            except Exception:
                continue
            del self.undecrypted[event_id]
            if isinstance(decrypted, RoomMessageText):
                await self.on_text(room, decrypted)
            elif isinstance(decrypted, RoomEncryptedImage):
                await self.on_image(room, decrypted)

    async def on_text(self, room, event):
        if event.sender == self.client.user_id:
            return
        content = event.source["content"]
        relation = content.get("m.relates_to", {})
        seen = {"room_id": room.room_id, "event_id": event.event_id, "sender": event.sender, "encrypted": bool(event.decrypted)}
        if relation.get("rel_type") == "m.replace":
            say({"event": "edit", "of": relation["event_id"], "body": content["m.new_content"]["body"], **seen})
        else:
            say({"event": "text", "body": event.body, **seen})

    async def on_image(self, room, event):
        if event.sender == self.client.user_id:
            return
        download = checked(await self.client.download(event.url))
        clear = decrypt_attachment(download.body, event.key["k"], event.hashes["sha256"], event.iv)
        say({
            "event": "image", "room_id": room.room_id, "event_id": event.event_id, "encrypted": bool(event.decrypted),
            "sha256": hashlib.sha256(clear).hexdigest(),
        })

    async def on_undecryptable(self, room, event):
        self.undecrypted[event.event_id] = (room, event)

    async def on_reaction(self, room, event):
        if event.sender != self.client.user_id:
            say({"event": "reaction", "room_id": room.room_id, "of": event.reacts_to, "key": event.key})

    async def on_redaction(self, room, event):
        if event.sender != self.client.user_id:
            say({"event": "redaction", "room_id": room.room_id, "of": event.redacts})

    async def on_invite(self, room, event):
        if event.state_key == self.client.user_id and event.membership == "invite":
            say({"event": "invite", "room_id": room.room_id})

    async def on_typing(self, room, event):
        if event.users:
            say({"event": "typing", "room_id": room.room_id, "user_ids": event.users})

    async def on_receipt(self, room, event):
        for receipt in event.receipts:
            say({"event": "receipt", "room_id": room.room_id, "of": receipt.event_id, "user_id": receipt.user_id})

    async def create_room(self, invite, direct):
        response = await self.client.room_create(is_direct=direct, invite=invite, initial_state=[ENCRYPTION])
        return {"room_id": checked(response).room_id}

    async def join(self, room_id):
        checked(await self.client.join(room_id))

    async def await_members(self, room_id, user_ids):
        """Until every user is joined in this client's eyes and has a device that it knows."""
        def complete():
            room = self.client.rooms.get(room_id)
            if room is None or not room.encrypted:
                return False
            joined = set(room.users) - set(room.invited_users)
            others = [user for user in user_ids if user != self.client.user_id]
            return set(user_ids) <= joined and all(self.client.device_store[user] for user in others)

        async with self.synced:
            await self.synced.wait_for(complete)

    async def send(self, room_id, kind, content):
        response = await self.client.room_send(room_id, kind, content, ignore_unverified_devices=True)
        return {"event_id": checked(response).event_id}

    async def send_text(self, room_id, body):
        return await self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": body})

    async def edit(self, room_id, event_id, body):
        content = {
            "msgtype": "m.text", "body": f"* {body}", "m.new_content": {"msgtype": "m.text", "body": body},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
        }
        return await self.send(room_id, "m.room.message", content)

    async def react(self, room_id, event_id, key):
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send(room_id, "m.reaction", {"m.relates_to": relation})

    async def redact(self, room_id, event_id):
        checked(await self.client.room_redact(room_id, event_id))

    async def send_image(self, room_id, bytes):
        clear = os.urandom(bytes)
        response, keys = await self.client.upload(
            io.BytesIO(clear), content_type="image/png", filename="picture.png", encrypt=True, filesize=bytes
        )
        checked(response)
        content = {
            "msgtype": "m.image", "body": "picture.png", "info": {"mimetype": "image/png", "size": bytes},
            "file": {"url": response.content_uri, "mimetype": "image/png", **keys},
        }
        sent = await self.send(room_id, "m.room.message", content)
        return {**sent, "sha256": hashlib.sha256(clear).hexdigest()}

    async def typing(self, room_id):
        checked(await self.client.room_typing(room_id, True, 20000))

    async def read(self, room_id, event_id):
        checked(await self.client.update_receipt_marker(room_id, event_id))


async def main():
    actor = Actor()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def obey(order):
        number, what = order.pop("id"), order.pop("do")
        try:
            say({"id": number, "result": await getattr(actor, what)(**order)})
        except Exception as error:
            say({"id": number, "error": repr(error)})

    while line := await reader.readline():
        await obey(json.loads(line))


asyncio.run(main())
