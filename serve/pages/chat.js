import {addNode, begin, childrenOf, drawSeed, forget, listChats, listPath, load, readRow, save,
  storage, titleOf, writeRow} from "/conversations.js";
import {ask, makeRequest, receive} from "/stream.js";
import {make, showTip, visible, writeText, writeTokens} from "/text.js";

const $ = (id) => document.getElementById(id);
const KEY = "heartwood.key", session = storage("sessionStorage");
const ENDS = {length: "ended at its limit", stopped: "stopped by you"};
const fields = $("settings").elements;
let models = [];
let chat = null;        // the conversation that is shown
let running = null;     // the answer that is written: {chat, id, stop, article, update}

const say = (text) => { $("fault").textContent = text; };
const keep = (one) => { const told = save(one); if (told) say(told); };
const isChat = (name) => models.find(({id}) => id === name)?.task !== "completion";

// --- settings and models ----------------------------------------------------------------------

const readForm = () => Object.fromEntries([...fields].map((one) =>
  [one.name, one.type === "checkbox" ? one.checked : one.value]));

function writeForm(settings) {
  for (const one of fields) {
    if (one.type === "checkbox") one.checked = settings[one.name] === true;
    else one.value = settings[one.name] ?? "";
  }
  if (!fields.model.value) fields.model.selectedIndex = 0;      // it is not served any more
}

async function loadModels() {
  try {
    const {data} = await (await ask("/v1/models", session[KEY])).json();
    models = data.filter(({task}) => task !== "embedding");
    fields.model.replaceChildren(...models.map(({id, task}) => make("option", {value: id,
      textContent: task === "chat" ? id : `${id} (continues text)`})));
    writeForm(chat.settings);
    say(models.length ? "" : "No model that writes text is served here.");
    $("key-form").hidden = true;
    show();
  } catch (error) { refuse(error); }
}

function refuse({message, status}) {
  say(message);
  showState();
  if (status !== 401) return;
  $("key-form").hidden = false;
  $("key").focus();
}

// --- conversations ----------------------------------------------------------------------------

function openChat(one) {
  chat = running?.chat.id === one.id ? running.chat : one;
  history.replaceState(null, "", `#${chat.id}`);
  writeForm(chat.settings);
  say("");
  show();
}

function startNew() {
  openChat(begin(readForm()));
  $("draft").focus();
}

function forgetChats(ids, question) {
  if (!confirm(question)) return;
  forget(ids);
  if (ids.includes(chat.id)) openChat(begin(readForm()));
  else showList();
}

function exportChat() {
  const file = new Blob([`${writeRow(chat)}\n`], {type: "application/json"});
  const href = URL.createObjectURL(file);
  make("a", {href, download: `chat-${chat.id}.jsonl`}).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

async function importFile(file) {
  try {
    const lines = (await file.text()).trim().split("\n");
    const read = lines.map((line) => readRow(line, readForm()));
    read.forEach(keep);
    openChat(read.at(-1));
  } catch (error) { say(`${file.name} holds no conversations: ${error.message}.`); }
}

// --- answers ----------------------------------------------------------------------------------

function isReady() {
  if (running) say("An answer is being written: stop it first, or wait for its end.");
  else if (!fields.model.value) say("There is no model to ask.");
  else if ($("settings").checkValidity()) return true;
  else { openSide(true); $("settings").reportValidity(); }
  return false;
}

function send(text, parent) {
  if (!text.trim() || !isReady()) return false;
  answer(addNode(chat, {parent, role: "user", content: text}));
  return true;
}

async function answer(parent) {     // writes one more answer to a turn that is shown
  if (!isReady()) return;
  const own = chat, before = own.picked[parent], path = listPath(own), given = readForm();
  const seed = given.seed === "" ? drawSeed()
    : (Number(given.seed) + childrenOf(own, parent).length) % 2 ** 32;
  const how = {...given, seed: `${seed}`};      // so that it can be written again
  const node = {parent, role: "assistant", content: "", tokens: [], finish: "cut", how};
  const turns = path.slice(0, path.indexOf(parent) + 1).map((id) => own.nodes[id]);
  const [url, body] = makeRequest(how, turns.map(({role, content}) => ({role, content})),
    isChat(how.model));
  own.settings = given;
  say("");
  keep(own);
  const control = new AbortController(), began = performance.now();
  running = {chat: own, id: addNode(own, node), stop: () => control.abort()};
  show();
  scrollTo(0, document.body.scrollHeight);
  let fault = null;
  try {
    const reply = await ask(url, session[KEY], body, control.signal);
    for await (const _ of receive(reply.body, node)) {
      if (node.content) node.firstSecs ??= (performance.now() - began) / 1000;
      running.update();
    }
  } catch (error) {
    fault = error;
    [node.finish, node.fault] = control.signal.aborted ? ["stopped"] : ["cut", error.message];
  }
  node.secs = (performance.now() - began) / 1000;
  end(before, fault);
}

function end(before, fault) {
  const {chat: own, id, article} = running, node = own.nodes[id];
  const isKept = node.content || !fault, wasInside = $("turns").contains(document.activeElement);
  running = null;
  if (!isKept) {
    delete own.nodes[id];
    own.picked[node.parent] = before;
  }
  keep(own);
  if (own === chat && isKept) article.replaceWith(showTurn(id));
  else if (own === chat) show();
  if (wasInside) $(isKept ? id : "again")?.focus({preventScroll: true});
  showList();
  showState();
  if (!isKept && node.finish === "stopped") say("Stopped before the first word.");
  else if (!isKept) refuse(fault);
  $("said").textContent = isKept ? `Answer: ${visible(node.content)}` : "";
}

// --- what is shown ----------------------------------------------------------------------------

function show() {
  const wasInside = $("turns").contains(document.activeElement);
  $("turns").replaceChildren(...listPath(chat).map(showTurn));
  if (wasInside) $("turns").lastChild?.focus({preventScroll: true});
  showList();
  showState();
}

function showState() {
  const last = chat.nodes[listPath(chat).at(-1)], {value: name} = fields.model;
  const tokens = models.find(({id}) => id === name)?.context_tokens.toLocaleString("en");
  $("title").textContent = visible(titleOf(chat));
  $("title").className = last ? "unseen" : "";      // the first turn says it
  $("about").textContent = last || !name ? "" : (isChat(name)
    ? `${name} reads and writes up to ${tokens} tokens. ` : `${name} is a base model: it goes on ` +
      `with your text, up to ${tokens} tokens, without turns or a system prompt. `) +
    "Conversations are kept in this browser alone.";
  fields.max_tokens.placeholder = isChat(name) ? "what fits" : "16";
  $("again").hidden = !!running || (models.length > 0 && last?.role !== "user");
  $("send").hidden = !!running;
  $("stop").hidden = !running;
}

function showList() {
  $("chats").replaceChildren(...listChats().map((one) => {
    const title = visible(titleOf(one));
    const open = make("button", {type: "button", className: "open", textContent: title,
      onclick: () => openChat(load(one.id))});
    open.setAttribute("aria-current", one.id === chat.id);
    return make("li", {}, open, make("button", {type: "button", textContent: "×",
      ariaLabel: `Forget ${title}`, onclick: () => forgetChats([one.id], `Forget "${title}"?`)}));
  }));
}

function showTurn(id) {
  const node = chat.nodes[id], isOwn = node.role === "user", isRunning = running?.id === id;
  const text = make("div", {className: "text", dir: "auto", ariaBusy: isRunning});
  const article = make("article", {id, className: `turn ${node.role}`, tabIndex: -1},
    make("h2", {textContent: isOwn ? "You" : visible(node.how?.model ?? node.role)}), text,
    make("p", {className: "foot"}, ...showVersions(id)));
  const isTinted = fields.logprobs.checked && node.how?.logprobs;
  const write = (isTinted ? writeTokens : writeText)(text, node);
  write(!isRunning);
  if (isRunning) Object.assign(running, {article, update: () => follow(() => write(false))});
  else if (isOwn || node.how) {
    article.lastChild.append(make("button", {type: "button", className: "act",
      textContent: isOwn ? "Edit" : "Retry", onclick: () => isOwn ? edit(id) : answer(node.parent)}));
  }
  article.lastChild.append(describe(node, isRunning));
  return article;
}

function describe({usage, secs, firstSecs, how, finish, fault}, isRunning) {
  if (isRunning || !how) return isRunning ? "writing …" : "";
  return [usage && `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
    firstSecs && `first after ${firstSecs.toFixed(2)} s`,
    usage && `${(usage.completion_tokens / secs).toFixed(1)} tokens/s`, `seed ${how.seed}`,
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
  const arrow = (step, textContent, ariaLabel) => make("button", {type: "button", textContent,
    ariaLabel, disabled: !all[place + step], onclick: () => turnTo(all[place + step], step)});
  return all.length < 2 ? [] : [make("span", {className: "versions"},
    arrow(-1, "‹", "Version before"), `${place + 1}/${all.length}`,
    arrow(1, "›", "Version after"))];
}

function turnTo(id, step) {
  chat.picked[chat.nodes[id].parent] = id;
  keep(chat);
  show();
  const arrows = [...$(id).querySelectorAll(".versions button")];
  (step < 0 ? arrows : arrows.reverse()).find(({disabled}) => !disabled).focus();
}

function edit(id) {
  const {content, parent} = chat.nodes[id];
  const field = make("textarea", {value: content, dir: "auto", ariaLabel: "Your message"});
  const form = make("form", {className: "edit"}, field, make("p", {className: "row"},
    make("button", {className: "main", textContent: "Send"}),
    make("button", {type: "button", textContent: "Cancel", onclick: show})));
  form.onsubmit = (event) => { event.preventDefault(); send(field.value, parent); };
  field.onkeydown = sendOnEnter;
  $(id).replaceChildren(form);
  field.focus();
}

function openSide(isOpen) {
  document.body.classList.toggle("with-side", isOpen);
  $("to-side").setAttribute("aria-expanded", isOpen);
}

// --- keys and buttons -------------------------------------------------------------------------

const findLast = (test) => listPath(chat).findLast((id) => test(chat.nodes[id]));
const onLastOwn = (act) => { const id = findLast(({role}) => role === "user"); if (id) act(id); };

function flip(step) {
  const id = findLast(({parent}) => childrenOf(chat, parent).length > 1);
  const all = id ? childrenOf(chat, chat.nodes[id].parent) : [], next = all[all.indexOf(id) + step];
  if (next) turnTo(next, step);
}

const KEYS = {m: () => $("draft").focus(), n: startNew, r: () => onLastOwn(answer),
  e: () => onLastOwn(edit), "[": () => flip(-1), "]": () => flip(1),
  p: () => fields.logprobs.click(), "?": () => $("help").showModal(),
  s: () => openSide(!document.body.classList.contains("with-side"))};
const STEPS = {ArrowLeft: "previousSibling", ArrowRight: "nextSibling"};

function onKey(event) {
  const at = event.target, isText = at.matches("textarea, select, input:not([type=checkbox])");
  if ($("help").open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") leave(at, isText);
  else if (at.matches(".token") && STEPS[event.key]) at[STEPS[event.key]]?.focus();
  else if (!isText && $("keys").checked && KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function leave(at, isText) {
  if (!$("tip").hidden) $("tip").hidden = true;
  else if (at.closest(".edit")) show();
  else if (running) running.stop();
  else if (isText) { at.blur(); $("title").focus(); }
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

function onPoint({target}) {
  const span = target.closest?.(".token");
  if (span) showTip($("tip"), span, $("composer").getBoundingClientRect().top);
  else if (!target.closest?.("#tip")) $("tip").hidden = true;
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (send($("draft").value, listPath(chat).at(-1) ?? "")) $("draft").value = "";
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  session[KEY] = $("key").value;
  loadModels();
};
$("settings").onsubmit = (event) => event.preventDefault();
for (const one of fields) one.onchange = () => {      // the list of models is outside the form
  chat.settings = readForm();
  keep(chat);
  if (document.querySelector(".edit")) showState();
  else show();
};
$("draft").onkeydown = sendOnEnter;
$("new").onclick = startNew;
$("to-side").onclick = KEYS.s;
$("open-help").onclick = KEYS["?"];
$("stop").onclick = () => running?.stop();
$("again").onclick = () => models.length ? answer(listPath(chat).at(-1)) : loadModels();
$("export").onclick = exportChat;
$("import").onclick = () => $("file").click();
$("file").onchange = () => { importFile($("file").files[0]); $("file").value = ""; };
$("forget").onclick = () => forgetChats(listChats().map(({id}) => id),
  "Forget all conversations that this browser keeps?");
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, onPoint);
document.addEventListener("keydown", onKey);
addEventListener("storage", showList);      // another tab has changed one
addEventListener("pagehide", () => { if (running?.chat.nodes[running.id].content) keep(running.chat); });
addEventListener("beforeunload", (event) => { if ($("draft").value.trim()) event.preventDefault(); });

openSide(innerWidth > 900);
openChat(load(location.hash.slice(1)) ?? begin({...readForm(), ...listChats()[0]?.settings}));
loadModels();
