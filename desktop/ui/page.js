// Shows what the node says of itself, and asks again as soon as something happens. It changes nothing.
"use strict";

const element = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Resolves when somebody can see the page. */
function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

/** An element with a class and text; texts come from strangers, so they are never parsed as HTML. */
function make(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function fill(list, items) {
  element(list).replaceChildren(...items);
}

function entry(title, tag, tagClass, detail) {
  const item = document.createElement("li");
  const first = make("div", "first", "");
  first.append(make("span", "", title));
  if (tag) first.append(make("span", tagClass, tag));
  item.append(first);
  if (detail) item.append(make("div", "detail", detail));
  return item;
}

const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;

/** The first and last characters of a key are enough to tell two apart. */
const short = (name) => `${name.slice(0, 12)}…${name.slice(-6)}`;

function showPeers(news) {
  const connected = new Set(news.peers.map((peer) => peer.server_name));
  const here = news.peers.map((peer) => {
    const item = entry(short(peer.server_name), "connected", "tag here", peer.addresses[0]);
    item.title = peer.server_name;
    return item;
  });
  const away = news.contacts.filter((server) => !connected.has(server)).map((server) => {
    const item = entry(short(server), "away", "tag");
    item.title = server;
    return item;
  });
  fill("peers", [...here, ...away]);
  element("peer-count").textContent = here.length + away.length;
  element("no-peers").hidden = here.length + away.length > 0;
}

function showRooms(news) {
  const rooms = news.rooms.map((room) => {
    const people = plural(room.members, "person", "people");
    const nodes = plural(room.servers, "node", "nodes");
    const item = entry(room.name ?? "Unnamed room", "", "", `${people} on ${nodes}`);
    item.title = room.room_id;
    return item;
  });
  const more = news.room_count - rooms.length;
  if (more > 0) rooms.push(make("li", "detail", `and ${more} more`));
  fill("rooms", rooms);
  element("room-count").textContent = news.room_count;
  element("no-rooms").hidden = news.room_count > 0;
}

function setState(text, className) {
  element("state").textContent = text;
  element("state").className = `state ${className}`;
}

function show(news) {
  setState(news.online ? "Online" : "Offline", news.online ? "online" : "offline");
  for (const [id, text] of [
    ["server-name", news.server_name],
    ["ticket", news.ticket],
    ["http", news.http ?? location.origin],
    ["peer-id", news.peer_id],
    ["socket", news.socket ?? ""],
    ["version", news.version],
  ]) {
    element(id).textContent = text;
  }
  element("qr").src = `data:image/svg+xml,${encodeURIComponent(news.qr)}`;
  element("qr").hidden = false;
  element("needs-user").hidden = news.users.length > 0;
  element("has-users").hidden = news.users.length === 0;
  fill("users", news.users.map((user) => {
    const item = document.createElement("li");
    item.append(make("code", "", user));
    return item;
  }));
  fill("listen", news.listen.map((address) => {
    const item = document.createElement("li");
    item.append(make("code", "", address));
    return item;
  }));
  showPeers(news);
  showRooms(news);
}

/** Begins with the news that came inside the page, and goes on from there. */
async function follow() {
  const first = JSON.parse(element("news").textContent);
  let tag = first.tag;
  show(first);
  for (;;) {
    await visible();
    try {
      const answer = await fetch(`/_kith/page/news${tag ? `?after=${tag}` : ""}`);
      if (!answer.ok) throw new Error(await answer.text());
      const news = await answer.json();
      tag = news.tag;
      show(news);
      await pause(300);
    } catch {
      // The node stopped or restarts; nothing else is on this address.
      tag = null;
      setState("Not running", "gone");
      await pause(2000);
    }
  }
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(element(button.dataset.copies).textContent);
    button.textContent = "Copied";
    await pause(1500);
    button.textContent = "Copy";
  });
}

follow();
