// matrix-js-sdk played by the scenario: orders come as JSON lines on stdin, answers and events go out on stdout.

import { createHash, randomBytes, webcrypto } from "node:crypto";
import { createInterface } from "node:readline";

// The SDK logs to the console; standard output belongs to the scenario.
for (const level of ["log", "info", "debug", "trace", "warn"]) console[level] = () => {};
const sdk = await import("matrix-js-sdk");
const { logger } = await import("matrix-js-sdk/lib/logger.js");
logger.setLevel?.("silent");

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const base64 = (bytes) => Buffer.from(bytes).toString("base64").replace(/=+$/, "");
const sha256 = (bytes) => createHash("sha256").update(bytes).digest();

let client;
let waiting = [];

// Conditions that some order waits for; looked at again after whatever may have changed them.
function until(condition) {
    return new Promise((resolve) => {
        waiting.push({ condition, resolve });
        lookAgain();
    });
}

async function lookAgain() {
    for (const entry of [...waiting]) {
        if (await entry.condition()) {
            waiting = waiting.filter((other) => other !== entry);
            entry.resolve();
        }
    }
}

// The SDK decrypts the newest event of a timeline first; what is told here is told in the timeline's order.
let telling = Promise.resolve();

function tellInTurn(event) {
    telling = telling.then(async () => {
        await readable(event);
        await tell(event);
    });
}

// Until an event is decrypted, however late its key comes.
async function readable(event) {
    await client.decryptEventIfNeeded(event);
    while (event.isDecryptionFailure() || event.isBeingDecrypted()) {
        await new Promise((resolve) => event.once(sdk.MatrixEventEvent.Decrypted, resolve));
    }
}

async function tell(event) {
    if (event.getSender() === client.getUserId()) return;
    const seen = { room_id: event.getRoomId(), event_id: event.getId(), sender: event.getSender(), encrypted: event.isEncrypted() };
    const content = event.getContent();
    const relation = event.getWireContent()["m.relates_to"] ?? content["m.relates_to"] ?? {};
    if (event.getType() === "m.room.message" && !event.isRedacted()) {
        if (relation.rel_type === "m.replace") {
            say({ event: "edit", of: relation.event_id, body: content["m.new_content"].body, ...seen });
        } else if (content.msgtype === "m.image") {
            say({ event: "image", sha256: await download(content.file), ...seen });
        } else {
            say({ event: "text", body: content.body, ...seen });
        }
    } else if (event.getType() === "m.reaction") {
        say({ event: "reaction", of: relation.event_id, key: relation.key, ...seen });
    } else if (event.getType() === "m.room.redaction") {
        say({ event: "redaction", of: event.event.redacts ?? content.redacts, ...seen });
    }
}

async function download(file) {
    const url = client.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
    const response = await fetch(url, { headers: { authorization: `Bearer ${client.getAccessToken()}` } });
    if (!response.ok) throw new Error(`download: ${response.status} ${await response.text()}`);
    const sealed = new Uint8Array(await response.arrayBuffer());
    if (base64(sha256(sealed)) !== file.hashes.sha256.replace(/=+$/, "")) throw new Error("the ciphertext was altered");
    const key = await webcrypto.subtle.importKey("jwk", file.key, { name: "AES-CTR" }, false, ["decrypt"]);
    const counter = Buffer.from(file.iv, "base64");
    const clear = await webcrypto.subtle.decrypt({ name: "AES-CTR", counter, length: 64 }, key, sealed);
    return sha256(new Uint8Array(clear)).toString("hex");
}

const orders = {
    async login({ url, user_id, password }) {
        const anonymous = sdk.createClient({ baseUrl: url });
        const session = await anonymous.loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: user_id },
            password,
            initial_device_display_name: "js-sdk",
        });
        client = sdk.createClient({
            baseUrl: url,
            userId: session.user_id,
            deviceId: session.device_id,
            accessToken: session.access_token,
        });
        await client.initRustCrypto({ useIndexedDB: false });
        client.on(sdk.RoomEvent.Timeline, (event, room, toStartOfTimeline) => {
            if (!toStartOfTimeline) tellInTurn(event);
        });
        client.on(sdk.RoomEvent.MyMembership, (room, membership) => {
            if (membership === "invite") say({ event: "invite", room_id: room.roomId });
        });
        client.on(sdk.RoomMemberEvent.Typing, (event, member) => {
            if (member.typing) say({ event: "typing", room_id: member.roomId, user_ids: [member.userId] });
        });
        client.on(sdk.RoomEvent.Receipt, (event, room) => {
            for (const [of, kinds] of Object.entries(event.getContent())) {
                for (const user_id of Object.keys(kinds["m.read"] ?? {})) say({ event: "receipt", room_id: room.roomId, of, user_id });
            }
        });
        client.on(sdk.ClientEvent.Sync, () => void lookAgain());
        client.on(sdk.RoomStateEvent.Members, () => void lookAgain());
        await client.startClient({ initialSyncLimit: 20, pollTimeout: 20000 });
        await until(() => client.isInitialSyncComplete());
        return { device_id: session.device_id };
    },

    async create_room({ invite, direct }) {
        const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
        return await client.createRoom({ preset: "private_chat", invite, is_direct: direct, initial_state: [encryption] });
    },

    async join({ room_id }) {
        await client.joinRoom(room_id);
    },

    async await_members({ room_id, user_ids }) {
        await until(async () => {
            const room = client.getRoom(room_id);
            if (!room || !(await client.getCrypto().isEncryptionEnabledInRoom(room_id))) return false;
            if (!user_ids.every((user) => room.getMember(user)?.membership === "join")) return false;
            const others = user_ids.filter((user) => user !== client.getUserId());
            const devices = await client.getCrypto().getUserDeviceInfo(others, true);
            return others.every((user) => (devices.get(user)?.size ?? 0) > 0);
        });
    },

    async send_text({ room_id, body }) {
        return await client.sendMessage(room_id, { msgtype: "m.text", body });
    },

    async edit({ room_id, event_id, body }) {
        return await client.sendMessage(room_id, {
            msgtype: "m.text",
            body: `* ${body}`,
            "m.new_content": { msgtype: "m.text", body },
            "m.relates_to": { rel_type: "m.replace", event_id },
        });
    },

    async react({ room_id, event_id, key }) {
        return await client.sendEvent(room_id, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id, key } });
    },

    async redact({ room_id, event_id }) {
        return await client.redactEvent(room_id, event_id);
    },

    async send_image({ room_id, bytes }) {
        const clear = randomBytes(bytes);
        const key = await webcrypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
        const counter = Buffer.concat([randomBytes(8), Buffer.alloc(8)]);
        const sealed = Buffer.from(await webcrypto.subtle.encrypt({ name: "AES-CTR", counter, length: 64 }, key, clear));
        const { content_uri: url } = await client.uploadContent(sealed, { type: "application/octet-stream", includeFilename: false });
        const jwk = await webcrypto.subtle.exportKey("jwk", key);
        const file = { url, key: jwk, iv: base64(counter), hashes: { sha256: base64(sha256(sealed)) }, v: "v2" };
        const info = { mimetype: "image/png", size: bytes };
        const sent = await client.sendMessage(room_id, { msgtype: "m.image", body: "picture.png", info, file });
        return { ...sent, sha256: sha256(clear).toString("hex") };
    },

    async typing({ room_id }) {
        await client.sendTyping(room_id, true, 20000);
    },

    async read({ room_id, event_id }) {
        const event = client.getRoom(room_id).findEventById(event_id);
        if (!event) throw new Error(`the client does not hold ${event_id}`);
        await client.sendReadReceipt(event, sdk.ReceiptType.Read, true);
    },
};

// Orders are obeyed one after another, in the order they came.
let turn = Promise.resolve();
createInterface({ input: process.stdin }).on("line", (line) => {
    turn = turn.then(async () => {
        const { id, do: what, ...rest } = JSON.parse(line);
        try {
            say({ id, result: (await orders[what](rest)) ?? null });
        } catch (error) {
            say({ id, error: String(error?.stack ?? error) });
        }
    });
}).on("close", () => process.exit(0));
