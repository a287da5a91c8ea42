// What the pages have in common: elements, keys, requests. Texts of models and people become text
// nodes only; nothing here parses markup.

export const $ = (id) => document.getElementById(id);
export const storage = (kind) => { try { return window[kind]; } catch { return {}; } };
const session = storage("sessionStorage");      // a browser may refuse it

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A turn of a conversation: who speaks, and what.
export const makeTurn = (who, content) => make("div", {className: `turn ${who}`},
  make("div", {className: "who", textContent: who}), makeText(content));
export const makeText = (textContent) => make("div", {className: "text", dir: "auto", textContent});

// Control characters become pictures, as in core/page/markup.py; those that reorder text, names.
export const visible = (text) => text.toWellFormed()
  .replace(/[\0-\x08\x0b-\x1f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt()))
  .replace(/\x7f/g, "\u2421").replace(/[\x80-\x9f]/g, "\ufffd")
  .replace(/[\u202a-\u202e\u2066-\u2069]/g, (one) =>
    `\u27e8U+${one.charCodeAt().toString(16).toUpperCase()}\u27e9`);

// Shows a line about what has happened.
export function say(text, isFault = false) {
  $("message").textContent = text;
  $("message").classList.toggle("fault", isFault);
}

// Calls back with a key ("a", "Ctrl+Enter"), the element that has the focus, and whether it takes
// text; returns true if the key has been used. Otherwise Escape leaves a text.
export function onKey(act) {
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
    const at = event.target, isText = at.matches("textarea, select, input:not([type=checkbox])");
    const key = event.ctrlKey || event.metaKey ? `Ctrl+${event.key}` : event.key;
    if (act(key, at, isText)) event.preventDefault();
    else if (key === "Escape" && isText) {
      at.blur();
      document.querySelector("h1[tabindex]").focus();
    }
  });
}

// Calls back when a form is sent, by its button or by Enter.
export function onSubmit(form, act) {
  form.onsubmit = (event) => { event.preventDefault(); act(); };
  form.onkeydown = (event) => {
    const isEnter = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (!isEnter || !event.target.matches("textarea")) return;
    event.preventDefault();
    form.requestSubmit();
  };
}

// Asks the server, and the reader for a key if one is needed. Every failure is an error {message,
// code}, whose message is a line for the reader.
export async function ask(path, body, signal) {
  const headers = {"Content-Type": "application/json"};
  if (session.apiKey) headers.Authorization = `Bearer ${session.apiKey}`;
  const reply = await fetch(path, {headers, signal, method: body ? "POST" : "GET",
    body: body && JSON.stringify(body)}).catch(() => {
    throw new Error("The server does not answer. Nothing is lost: try again.");
  });
  if (reply.ok) return reply;
  const {error} = await reply.json().catch(() => ({}));
  if (reply.status === 401 && await askForKey()) return ask(path, body, signal);
  const message = reply.status === 429
    ? `The server is busy: try again in ${reply.headers.get("Retry-After") ?? 1} s.`
    : `The server refuses: ${error?.message ?? `status ${reply.status}`}.`;
  throw Object.assign(new Error(message), {code: error?.code});
}

function askForKey() {          // returns it, or "" if none is given
  $("login").returnValue = $("key").value = "";
  $("login").showModal();
  return new Promise((resolve) => {
    $("login").onclose = () => resolve(session.apiKey = $("login").returnValue && $("key").value);
  });
}

// The events of a reply, one after another; a stream without its end is an error.
export async function* readEvents(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("the connection was lost");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const text of events) {
      if (text === "data: [DONE]") return;
      const event = JSON.parse(text.slice("data: ".length));
      if (event.error) throw Object.assign(new Error(event.error.message), event.error);
      yield event;
    }
  }
}
