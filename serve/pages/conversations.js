// Conversations: {id, settings, nodes, picked}, trees of turns that this browser keeps. A node is
// {parent, role, content} and of an answer how it was drawn; none with a text is changed later.
import {make, say, storage, visible} from "/page.js";
import {toMessages} from "/stream.js";

const PREFIX = "heartwood.chat.", MAX_CHATS = 50;
const kept = storage("localStorage");

const drawNumber = () => crypto.getRandomValues(new Uint32Array(1))[0];
const newId = () => `c${Date.now().toString(36)}${drawNumber().toString(36)}`;
export const begin = (settings) => ({id: newId(), settings, nodes: {}, picked: {}});

export const childrenOf = (chat, parent) =>
  Object.keys(chat.nodes).filter((id) => chat.nodes[id].parent === parent);

export function listPath(chat) {    // the turns that are shown: after each its picked successor
  const path = [];
  for (let at = ""; ; path.push(at)) {
    const next = childrenOf(chat, at);
    if (!next.length) return path;
    at = next.includes(chat.picked[at]) ? chat.picked[at] : next.at(-1);
  }
}

// The seed of a turn's next answer: a new one where none is given, otherwise the next one.
export const nextSeed = (chat, parent, given) => `${given === "" ? drawNumber()
  : (Number(given) + childrenOf(chat, parent).length) % 2 ** 32}`;

export const titleOf = (chat) => visible(chat.nodes[listPath(chat)[0]]?.content.trim().slice(0, 80)
  || "New conversation");

export function addNode(chat, node) {
  const id = newId();
  chat.nodes[id] = node;
  chat.picked[node.parent] = id;
  return id;
}

export function load(id) {
  try { return JSON.parse(kept[PREFIX + id]); } catch { return null; }
}

export const forget = (ids) => ids.forEach((id) => { delete kept[PREFIX + id]; });
export const listChats = () => Object.keys(kept).filter((key) => key.startsWith(PREFIX))
  .map((key) => load(key.slice(PREFIX.length))).filter(Boolean)
  .sort((one, other) => other.changed - one.changed);

// Keeps a conversation; the oldest ones make room.
export function save(chat) {
  if (!Object.keys(chat.nodes).length) return;
  const others = listChats().filter(({id}) => id !== chat.id);
  chat.changed = Date.now();
  for (;;) {
    try {
      if (others.length < MAX_CHATS) { kept[PREFIX + chat.id] = JSON.stringify(chat); return; }
    } catch {
      if (!others.length) return say("This conversation is too large to be kept: export it.");
    }
    const oldest = others.pop();
    forget([oldest.id]);
    say(`The oldest conversation was forgotten, as no room is left: "${titleOf(oldest)}".`);
  }
}

// Downloads a line of JSON that `data.layouts` reads: the turns that are shown, all in `meta`.
export function download(chat) {
  const shown = listPath(chat).map((id) => chat.nodes[id]), last = shown.findLast(({how}) => how);
  const settings = last?.how ?? chat.settings, {nodes, picked} = chat;
  const row = {messages: toMessages(settings.system, shown), meta: {model: settings.model,
    fingerprint: last?.fingerprint ?? null, settings, nodes, picked}};
  const file = new Blob([`${JSON.stringify(row)}\n`], {type: "application/json"});
  const href = URL.createObjectURL(file);
  make("a", {href, download: `chat-${chat.id}.jsonl`}).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}
