"use strict";
// Texts of models and people become text nodes only; nothing here parses markup.
const $ = (id) => document.getElementById(id);
const storage = (kind) => { try { return window[kind]; } catch { return {}; } };  // may be refused
const kept = storage("localStorage"), session = storage("sessionStorage");
const PREFIX = "heartwood.chat.", KEY = "heartwood.key", MAX_CHATS = 50, NUM_TOP = 5;
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
const ENDS = {length: "ended at its limit", stopped: "stopped by you"};
let models = [];
let chat;               // {id, settings, nodes, picked}: a tree of turns, none is ever removed
let running = null;     // the answer that is drawn: {id, stop, update, article}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const say = (text) => { $("fault").textContent = text; };

// Control characters become pictures, as in core/page/markup.py; those that reorder text, names.
const visible = (text) => text.toWellFormed().replace(/[\0-\x08\x0b-\x1f\x7f]/g, (one) =>
  one === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + one.charCodeAt()))
  .replace(/[\x80-\x9f]/g, "\ufffd").replace(/[\u202a-\u202e\u2066-\u2069]/g, (one) =>
    `\u27e8U+${one.charCodeAt().toString(16).toUpperCase()}\u27e9`);

// --- conversations: trees of turns, kept in this browser --------------------------------------

const newId = () => `c${Date.now().toString(36)}` +
  crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
const newChat = () => ({id: newId(), settings: readForm(), nodes: {}, picked: {}});
const childrenOf = (one, parent) =>
  Object.keys(one.nodes).filter((id) => one.nodes[id].parent === parent);
const listChats = () => Object.keys(kept).filter((key) => key.startsWith(PREFIX))
  .map((key) => JSON.parse(kept[key])).sort((a, b) => b.changed - a.changed);
const titleOf = (one) =>
  visible(one.nodes[listPath(one)[0]]?.content.slice(0, 80) ?? "New conversation");

function listPath(one) {    // the turns that are shown: of each one's successors the picked one
  const path = [];
  for (let at = ""; ; path.push(at)) {
    const next = childrenOf(one, at);
    if (!next.length) return path;
    at = next.includes(one.picked[at]) ? one.picked[at] : next.at(-1);
  }
}

function add(one, node) {
  const id = newId();
  one.nodes[id] = node;
  one.picked[node.parent] = id;
  return id;
}

function save(one) {
  if (!Object.keys(one.nodes).length) return;
  const key = PREFIX + one.id, others = listChats().filter(({id}) => id !== one.id);
  if (kept[key]) one.nodes = {...JSON.parse(kept[key]).nodes, ...one.nodes};  // of another tab
  one.changed = Date.now();
  for (;;) {
    try {
      if (others.length < MAX_CHATS) { kept[key] = JSON.stringify(one); return; }
    } catch {
      if (!others.length) { say("This conversation is too large to be kept: export it."); return; }
    }
    const oldest = others.pop();
    delete kept[PREFIX + oldest.id];
    say(`There was no room left: "${titleOf(oldest)}", the oldest conversation, was forgotten.`);
  }
}

function forget(ids, question) {
  if (!confirm(question)) return;
  for (const id of ids) delete kept[PREFIX + id];
  if (ids.includes(chat.id)) openChat(newChat());
  else showList();
}

function openChat(one) {
  chat = running?.chat.id === one.id ? running.chat : one;
  history.replaceState(null, "", `#${chat.id}`);
  writeForm(chat.settings);
  say("");
  show();
}

const toMessages = (path, {system}, one = chat) => [
  ...(system ? [{role: "system", content: system}] : []),
  ...path.map((id) => ({role: one.nodes[id].role, content: one.nodes[id].content}))];

function exportChat() {
  const path = listPath(chat), last = path.map((id) => chat.nodes[id]).findLast(({how}) => how);
  const settings = last?.how ?? chat.settings;
  const row = {messages: toMessages(path, settings), meta: {model: settings.model,
    fingerprint: last?.fingerprint ?? null, settings, exported: new Date().toISOString(),
    nodes: chat.nodes, picked: chat.picked}};
  const file = new Blob([`${JSON.stringify(row)}\n`], {type: "application/json"});
  const href = URL.createObjectURL(file);
  make("a", {href, download: `chat-${chat.id}.jsonl`}).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

async function importFile(file) {
  try {
    const made = (await file.text()).trim().split("\n").map((line) => fromRow(JSON.parse(line)));
    made.forEach(save);
    openChat(made.at(-1));
  } catch (error) { say(`${file.name} holds no conversations: ${error.message}.`); }
}

function fromRow({messages, meta}) {
  const made = newChat(), ids = new Map([["", ""]]);
  const [system] = messages.filter(({role}) => role === "system"), turns = messages.slice(!!system);
  Object.assign(made.settings, meta?.settings, {system: system?.content ?? ""});
  const chain = turns.map((turn, k) => [`${k}`, {...turn, parent: k ? `${k - 1}` : ""}]);
  for (const [old, node] of meta?.nodes ? Object.entries(meta.nodes) : chain) {
    const isTurn = typeof node.role === "string" && typeof node.content === "string";
    if (!isTurn || !ids.has(node.parent) || !(node.tokens ?? []).every(isToken)) {
      throw new Error("a turn is not as it was exported");
    }
    ids.set(old, add(made, {...node, parent: ids.get(node.parent)}));
  }
  for (const [parent, child] of Object.entries(meta?.picked ?? {})) {
    made.picked[ids.get(parent)] = ids.get(child);
  }
  return made;
}

const isToken = ({name, logp, top}) => typeof name === "string" && isLogp(logp) &&
  top.every((one) => typeof one[0] === "string" && isLogp(one[1]));
const isLogp = (value) => value === null || typeof value === "number";    // JSON has no -Infinity

// --- the server -------------------------------------------------------------------------------

const fields = () => [...$("settings").elements];
const readForm = () => Object.fromEntries(fields().map((one) =>
  [one.name, one.type === "checkbox" ? one.checked : one.value]));

function writeForm(settings) {
  for (const one of fields()) {
    if (one.type === "checkbox") one.checked = settings[one.name] === true;
    else one.value = settings[one.name] ?? "";
  }
  if (!$("model").value) $("model").selectedIndex = 0;    // another server's model
}

async function ask(path, body, signal) {
  const headers = {"Content-Type": "application/json"};
  if (session[KEY]) headers.Authorization = `Bearer ${session[KEY]}`;
  const reply = await fetch(path, {headers, signal, method: body ? "POST" : "GET",
    body: body && JSON.stringify(body)}).catch(() => {
    throw new Error("The server does not answer. Nothing is lost: try again.");
  });
  if (reply.ok) return reply;
  const {error} = await reply.json().catch(() => ({}));
  if (reply.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    throw new Error(session[KEY] ? "This key is not accepted." : "This server needs an API key.");
  }
  if (reply.status === 429) {
    throw new Error(`The server is busy. Try again in ${reply.headers.get("Retry-After") ?? 1} s.`);
  }
  throw new Error(error?.code === "context_length_exceeded" ? "The conversation is too long: " +
    `${error.message}. Edit an earlier message, or ask for a shorter answer.`
    : `The server refuses: ${error?.message ?? `status ${reply.status}`}.`);
}

async function loadModels() {
  try {
    const {data} = await (await ask("/v1/models")).json();
    models = data.filter(({task}) => task !== "embedding");
    $("model").replaceChildren(...models.map(({id, task}) => make("option", {value: id,
      textContent: task === "chat" ? id : `${id} (continues text)`})));
    $("key-form").hidden = true;
    writeForm(chat.settings);
    say(models.length ? "" : "No language model is served here.");
    show();
  } catch (error) { say(error.message); }
}

const isChat = (name) => models.find(({id}) => id === name)?.task !== "completion";

function makeBody(how, path) {
  const body = {model: how.model, stream: true, stream_options: {include_usage: true}};
  for (const name of NUMBERS) if (how[name] !== "") body[name] = Number(how[name]);
  const stop = how.stop.split("\n").filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
  if (stop.length) body.stop = stop;
  if (!isChat(how.model)) {
    return {...body, prompt: path.map((id) => chat.nodes[id].content).join(""),
      ...(how.logprobs && {logprobs: NUM_TOP})};
  }
  return {...body, messages: toMessages(path, how),
    ...(how.logprobs && {logprobs: true, top_logprobs: NUM_TOP})};
}

async function* readEvents(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  for (let text = ""; ;) {
    const {value, done} = await reader.read();
    const events = (text + decoder.decode(value, {stream: !done})).split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice("data: ".length));
    }
    if (done) throw new Error("the connection ended");
  }
}

function take(node, {error, choices, usage, system_fingerprint: fingerprint}) {
  if (error) throw new Error(error.message);
  Object.assign(node, {fingerprint}, usage && {usage});
  for (const {delta, text, logprobs, finish_reason: finish} of choices) {
    node.content += delta?.content ?? text ?? "";
    node.tokens.push(...listTokens(logprobs));
    if (finish) node.finish = finish;
  }
}

function listTokens(logprobs) {     // of both endpoints, in one form
  if (logprobs?.content) {
    return logprobs.content.map(({token, logprob, top_logprobs: top}) => ({name: token,
      logp: logprob, top: top.map((one) => [one.token, one.logprob])}));
  }
  return (logprobs?.tokens ?? []).map((name, k) => ({name, logp: logprobs.token_logprobs[k],
    top: Object.entries(logprobs.top_logprobs[k])}));
}

function isReady() {
  if (running) say("Stop the answer that is being written first, or wait for its end.");
  else if (!$("model").value) say("There is no model to ask.");
  else if (!$("settings").checkValidity()) {
    openSide(true);
    $("settings").reportValidity();
  } else return true;
  return false;
}

function send(text, parent) {
  if (!text.trim() || !isReady()) return false;
  chat.settings = readForm();
  answer(add(chat, {parent, role: "user", content: text}));
  return true;
}

async function answer(parent) {     // draws another answer to a turn that is shown
  if (!isReady()) return;
  const own = chat, path = listPath(own), before = own.picked[parent];
  const how = {...readForm(), seed: nextSeed(childrenOf(own, parent).length)};
  const body = makeBody(how, path.slice(0, path.indexOf(parent) + 1));
  const node = {parent, role: "assistant", content: "", tokens: [], finish: "cut", how};
  save(own);
  const control = new AbortController(), began = performance.now(), id = add(own, node);
  const countSecs = () => (performance.now() - began) / 1000;
  running = {chat: own, id, stop: () => control.abort()};
  say("");
  show();
  scrollTo(0, document.body.scrollHeight);
  try {
    const url = isChat(how.model) ? "/v1/chat/completions" : "/v1/completions";
    for await (const event of readEvents((await ask(url, body, control.signal)).body)) {
      take(node, event);
      if (node.content) node.firstSecs ??= countSecs();
      running.update();
    }
  } catch (error) {
    if (control.signal.aborted) node.finish = "stopped";
    else node.fault = error.message;
  }
  node.secs = countSecs();
  end(own, id, before);
}

function end(own, id, before) {     // of an answer, for whatever reason
  const node = own.nodes[id], {article} = running;
  running = null;
  const isEmpty = !node.content && ["cut", "stopped"].includes(node.finish);
  if (isEmpty) {
    delete own.nodes[id];
    own.picked[node.parent] = before;
  }
  save(own);
  if (isEmpty || own !== chat) show();
  else article.replaceWith(showTurn(id));     // the others keep what has the focus
  showState();
  if (isEmpty) say(node.fault ?? "Stopped before the first word.");
  $("said").textContent = isEmpty ? "" : `Answer: ${visible(node.content)}`;
}

function nextSeed(numBefore) {      // an answer can be drawn again: its seed is kept with it
  const {seed} = readForm();
  return `${seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0]
    : (Number(seed) + numBefore) % 2 ** 32}`;
}

// --- what is shown ----------------------------------------------------------------------------

function show() {
  $("turns").replaceChildren(...listPath(chat).map(showTurn));
  showList();
  showState();
}

function showState() {
  const last = chat.nodes[listPath(chat).at(-1)], name = $("model").value;
  $("title").textContent = titleOf(chat);
  $("about").textContent = last ? "" : isChat(name)
    ? `Answers come from ${name}. Conversations are kept in this browser alone.`
    : `${name} is a base model: it goes on with your text, without turns or a system prompt.`;
  $("again").hidden = !!running || last?.role !== "user";
  $("send").hidden = !!running;
  $("stop").hidden = !running;
}

function showList() {
  $("chats").replaceChildren(...listChats().map((one) => {
    const title = titleOf(one);
    const open = make("button", {type: "button", className: "open", textContent: title,
      onclick: () => openChat(one)});
    open.setAttribute("aria-current", one.id === chat.id);
    return make("li", {}, open, make("button", {type: "button", textContent: "×",
      ariaLabel: `Forget ${title}`, onclick: () => forget([one.id], `Forget "${title}"?`)}));
  }));
}

function showTurn(id) {
  const node = chat.nodes[id], isOwn = node.role === "user", isRunning = running?.id === id;
  const text = make("div", {className: "text", dir: "auto"});
  const foot = make("p", {className: "foot"}, ...showVersions(id), describe(node, isRunning));
  const article = make("article", {id, className: `turn ${node.role}`}, make("h2", {
    textContent: isOwn ? "You" : visible(node.how?.model ?? node.role)}), text, foot);
  const isTinted = document.forms.settings.logprobs.checked && node.how?.logprobs;
  const write = (isTinted ? writeTokens : writeText)(text, node);
  write(!isRunning);
  if (isRunning) {
    Object.assign(running, {article, update: () => follow(() => write(false))});
    text.ariaBusy = "true";
  } else {
    const act = isOwn ? () => edit(id) : () => answer(node.parent);
    if (node.role !== "system") foot.append(make("button", {type: "button", onclick: act,
      className: "act", textContent: isOwn ? "Edit" : "Retry"}));
  }
  return article;
}

function describe({usage, secs, firstSecs, how, finish, fault, role}, isRunning) {
  if (role !== "assistant") return "";
  if (isRunning) return "writing …";
  return [usage && `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
    firstSecs && `first after ${firstSecs.toFixed(2)} s`,
    usage && `${(usage.completion_tokens / secs).toFixed(1)} tokens/s`, how && `seed ${how.seed}`,
    finish === "cut" ? `cut: ${fault ?? "the page was left"}` : ENDS[finish]]
    .filter(Boolean).join(" · ");
}

function follow(change) {       // stays at the end of the page if it is there
  const isAtEnd = innerHeight + scrollY > document.body.scrollHeight - 60;
  change();
  if (isAtEnd) scrollTo(0, document.body.scrollHeight);
}

function showVersions(id) {
  const all = childrenOf(chat, chat.nodes[id].parent), place = all.indexOf(id);
  const make_ = (step, textContent, ariaLabel) => make("button", {type: "button", textContent,
    ariaLabel, disabled: !all[place + step], onclick: () => turn(id, step)});
  return all.length < 2 ? [] : [make("span", {className: "versions"},
    make_(-1, "‹", "Version before"), `${place + 1}/${all.length}`, make_(1, "›", "Version after"))];
}

function turn(id, step) {
  const {parent} = chat.nodes[id], all = childrenOf(chat, parent), next = all[all.indexOf(id) + step];
  if (!next) return;
  chat.picked[parent] = next;
  save(chat);
  show();
  const buttons = [...$(next).querySelectorAll(".versions button")];
  (buttons[step < 0 ? 0 : 1].disabled ? buttons[step < 0 ? 1 : 0] : buttons[step < 0 ? 0 : 1]).focus();
}

function edit(id) {
  const node = chat.nodes[id];
  const field = make("textarea", {value: node.content, rows: 3, dir: "auto",
    ariaLabel: "Your message"});
  const form = make("form", {className: "edit", onsubmit: (event) => {
    event.preventDefault();
    send(field.value, node.parent);
  }}, field, make("p", {className: "row"}, make("button", {className: "main", textContent: "Send"}),
    make("button", {type: "button", textContent: "Cancel", onclick: show})));
  sendOnEnter(field);
  $(id).replaceChildren(form);
  field.focus();
}

const sendOnEnter = (field) => field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  field.form.requestSubmit();
});

function writeText(box, node) {
  let shown = 0;
  return () => {
    box.append(visible(node.content.slice(shown)));
    shown = node.content.length;
  };
}

// Writes an answer token by token. A character that several tokens share is theirs together; a token
// without text, such as the one that ends the answer, is shown by its name.
function writeTokens(box, node) {
  const decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  let numRead = 0, shown = 0, text = "", tokens = [];
  const put = (part) => {
    box.append(make("span", {tokens, className: part ? "token" : "token silent",
      textContent: visible(part || tokens.map(({name}) => name).join("")), tabIndex: -1}));
    box.lastChild.style.setProperty("--odds", tokens.reduce((all, one) => all * chance(one.logp), 1));
    [shown, text, tokens] = [shown + part.length, "", []];
  };
  return (isEnd) => {
    while (text || numRead < node.tokens.length) {
      if (!text) {
        tokens.push(node.tokens[numRead++]);
        text = decoder.decode(bytesOf(tokens.at(-1).name), {stream: true});
        continue;
      }
      const rest = node.content.slice(shown);
      if (rest.startsWith(text)) put(text);
      else if (!text.startsWith(rest)) put("");
      else if (isEnd) put(rest);
      else break;       // its text is not all there yet
    }
    if (isEnd && (tokens.length || shown < node.content.length)) put(node.content.slice(shown));
    if (box.firstChild) box.firstChild.tabIndex = 0;    // arrow keys lead to the others
  };
}

const chance = (logp) => logp === null ? 0 : Math.exp(logp);

function bytesOf(name) {        // of a part of a character, whose name lists its bytes
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return new TextEncoder().encode(name);
  return Uint8Array.from(name.split("\\x").slice(1), (byte) => parseInt(byte, 16));
}

function showTip(span) {
  $("tip").replaceChildren(...span.tokens.map(({name, logp, top}) => {
    const rows = top.some((one) => one[0] === name) ? top : [...top, [name, logp]];
    return make("table", {}, ...rows.map(([other, its]) => make("tr",
      {className: other === name ? "drawn" : ""}, make("td", {textContent: quote(other)}),
      make("td", {textContent: `${(100 * chance(its)).toFixed(1)} %`}))));
  }));
  $("tip").hidden = false;
  const {left, bottom, top} = span.getClientRects()[0], {offsetWidth, offsetHeight} = $("tip");
  const room = $("composer").getBoundingClientRect().top;
  const y = bottom + offsetHeight < room ? bottom : top - offsetHeight;
  $("tip").style.left = `${Math.max(8, Math.min(left, innerWidth - offsetWidth - 8))}px`;
  $("tip").style.top = `${scrollY + y}px`;
  span.setAttribute("aria-describedby", "tip");
}

const quote = (name) => visible(name).replaceAll(" ", "␣").replaceAll("\n", "⏎")
  .replaceAll("\t", "⇥") || "(no text)";

// --- keys and buttons -------------------------------------------------------------------------

const startNew = () => { openChat(newChat()); $("draft").focus(); };

function openSide(isOpen) {
  document.body.classList.toggle("with-side", isOpen);
  $("to-side").setAttribute("aria-expanded", isOpen);
}

const lastOf = (test) => listPath(chat).findLast((id) => test(chat.nodes[id], id));
const flip = (step) => {
  const id = lastOf(({parent}) => childrenOf(chat, parent).length > 1);
  if (id) turn(id, step);
};
const KEYS = {m: () => $("draft").focus(), n: startNew,
  r: () => { const id = lastOf(({role}) => role === "user"); if (id) answer(id); },
  e: () => { const id = lastOf(({role}) => role === "user"); if (id) edit(id); },
  "[": () => flip(-1), "]": () => flip(1), p: () => document.forms.settings.logprobs.click(),
  s: () => openSide(!document.body.classList.contains("with-side")),
  "?": () => $("help").showModal()};

function onKey(event) {
  const at = event.target, isText = at.matches("textarea, select, input:not([type=checkbox])");
  if ($("help").open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") leave(at, isText);
  else if (at.matches(".token") && event.key.startsWith("Arrow")) {
    const next = ["ArrowLeft", "ArrowUp"].includes(event.key) ? "previousSibling" : "nextSibling";
    at[next]?.focus();
  } else if (!isText && $("keys").checked && KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function leave(at, isText) {
  if (!$("tip").hidden) $("tip").hidden = true;
  else if (at.closest(".edit")) show();
  else if (running) running.stop();
  else if (isText) { at.blur(); $("title").focus(); }
}

function onPoint(event) {
  const span = event.target.closest?.(".token");
  if (span) showTip(span);
  else if (!event.target.closest?.("#tip")) $("tip").hidden = true;
}

openSide(innerWidth > 900);
$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (send($("draft").value, listPath(chat).at(-1) ?? "")) $("draft").value = "";
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  session[KEY] = $("key").value;
  loadModels();
};
sendOnEnter($("draft"));
$("settings").onchange = () => {
  chat.settings = readForm();
  save(chat);
  show();
};
$("settings").onsubmit = (event) => event.preventDefault();
$("new").onclick = startNew;
$("to-side").onclick = KEYS.s;
$("open-help").onclick = KEYS["?"];
$("stop").onclick = () => { running?.stop(); $("draft").focus(); };
$("again").onclick = () => answer(listPath(chat).at(-1));
$("export").onclick = exportChat;
$("import").onclick = () => $("file").click();
$("file").onchange = () => { importFile($("file").files[0]); $("file").value = ""; };
$("forget").onclick = () =>
  forget(listChats().map(({id}) => id), "Forget all conversations of this browser?");
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, onPoint);
document.addEventListener("keydown", onKey);
addEventListener("storage", showList);      // another tab has changed one
addEventListener("pagehide", () => { if (running?.chat.nodes[running.id].content) save(running.chat); });
const opened = kept[PREFIX + location.hash.slice(1)], newest = listChats()[0];
chat = opened ? JSON.parse(opened) : {...newChat(), settings: newest?.settings ?? readForm()};
openChat(chat);
loadModels();
