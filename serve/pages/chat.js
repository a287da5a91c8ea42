import {addNode, begin, childrenOf, download, forget, listChats, listPath, load, nextSeed, readRows,
  save, storage, titleOf} from "/conversations.js";
import {chosenModel, describeModel, fetchModels, fields, readForm, writeForm} from "/settings.js";
import {draw, makeRequest} from "/stream.js";
import {showTip, visible} from "/text.js";
import {makeEdit, makeEntry, makeTurn, onSubmit} from "/turns.js";

const $ = (id) => document.getElementById(id);
const KEY = "heartwood.key", NARROW = 900, session = storage("sessionStorage");
let chat = null;        // the conversation that is shown
let running = null;     // the answer that is written: {chat, id, stop, article, update}

const say = (text) => { $("fault").textContent = text; };
const keep = (one) => { const told = save(one); if (told) say(told); };

async function loadModels() {
  try {
    await fetchModels(session[KEY]);
    writeForm(chat.settings);
    say(chosenModel() ? "" : "No model that writes text is served here.");
    $("key-form").hidden = true;
    show();
  } catch (error) { refuse(error); }
}

function refuse({message, status}) {
  say(message);
  showState();
  scrollTo(0, document.body.scrollHeight);      // where the line is
  $("key-form").hidden = status !== 401;
  if (status === 401) $("key").focus();
}

function openChat(one) {
  chat = running?.chat.id === one.id ? running.chat : one;
  if (innerWidth <= NARROW) openSide(false);
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
  if (running && ids.includes(running.chat.id)) say("An answer is being written: stop it first.");
  else if (confirm(question)) {
    forget(ids);
    openChat(ids.includes(chat.id) ? begin(readForm()) : chat);
  }
}

async function importFile(file) {
  try {
    const read = readRows(await file.text(), readForm());
    openChat(read.at(-1));
    read.forEach(keep);
    showList();
  } catch (error) { say(`${file.name} holds no conversations: ${error.message}.`); }
}

// --- answers ----------------------------------------------------------------------------------

function isReady() {
  if (running) say("An answer is being written: stop it first, or wait for its end.");
  else if (!chosenModel()) say("There is no model to ask.");
  else if ($("settings").checkValidity()) return true;
  else { openSide(true); $("settings").reportValidity(); }
  return false;
}

function send(text, parent) {
  const isSent = text.trim() !== "" && isReady();
  if (isSent) answer(addNode(chat, {parent, role: "user", content: text}));
  return isSent;
}

async function answer(parent) {     // writes one more answer to a turn that is shown
  if (!isReady()) return;
  const own = chat, before = own.picked[parent], path = listPath(own), given = readForm();
  const how = {...given, seed: nextSeed(own, parent, given.seed)};  // it can be drawn again
  const turns = path.slice(0, path.indexOf(parent) + 1).map((id) => own.nodes[id]);
  const node = {parent, role: "assistant", content: "", tokens: [], finish: "cut", how};
  own.settings = given;
  say("");
  keep(own);
  const control = new AbortController();
  running = {chat: own, id: addNode(own, node), stop: () => control.abort()};
  show();
  scrollTo(0, document.body.scrollHeight);
  end(before, await draw(node, makeRequest(how, turns, chosenModel().task === "chat"),
    session[KEY], control.signal, () => running.update()));
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
  if (own === chat && !isKept) show();
  else if (own === chat) article.replaceWith(showTurn(id));
  if (wasInside) $(isKept ? id : "again")?.focus({preventScroll: true});
  showList();
  showState();
  if (!isKept) refuse(node.finish === "stopped" ? {message: "Stopped before it began."} : fault);
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
  const last = chat.nodes[listPath(chat).at(-1)];
  $("title").textContent = visible(titleOf(chat));
  $("title").className = last ? "unseen" : "";      // the first turn says it
  $("about").textContent = last ? ""
    : `${describeModel()} Conversations are kept in this browser alone.`;
  $("again").hidden = !!running || (!!chosenModel() && last?.role !== "user");
  $("send").hidden = !!running;
  $("stop").hidden = !running;
}

function showList() {
  $("chats").replaceChildren(...listChats().map((one) => {
    const title = visible(titleOf(one));
    return makeEntry(title, one.id === chat.id, () => openChat(load(one.id)),
      () => forgetChats([one.id], `Forget "${title}"?`));
  }));
}

function showTurn(id) {
  const isWriting = running?.id === id;
  const {article, write} = makeTurn(chat, id, {edit, retry: answer, turnTo},
    {isWriting, isTinted: fields.logprobs.checked});
  if (isWriting) Object.assign(running, {article, update: () => follow(() => write(false))});
  return article;
}

function follow(change) {       // stays at the end of the page if it is there
  const isAtEnd = innerHeight + scrollY > document.body.scrollHeight - 60;
  change();
  if (isAtEnd) scrollTo(0, document.body.scrollHeight);
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
  const cancel = () => { show(); $(id).focus(); };
  $(id).replaceChildren(makeEdit(content, (text) => send(text, parent), cancel));
  $(id).querySelector("textarea").focus();
}

function openSide(isOpen) {
  document.body.classList.toggle("with-side", isOpen);
  $("to-side").setAttribute("aria-expanded", isOpen);
}

// --- keys and buttons -------------------------------------------------------------------------

function onLastOwn(act) {
  const last = [...$("turns").querySelectorAll(".user")].at(-1);
  if (last) act(last.id);
}

const flip = (arrow) => [...document.querySelectorAll(".versions")].at(-1)?.children[arrow].click();
const KEYS = {m: () => $("draft").focus(), n: startNew, r: () => onLastOwn(answer),
  e: () => onLastOwn(edit), "[": () => flip(0), "]": () => flip(1),
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
  if (at.closest(".edit")) at.form.elements.cancel.click();
  else if (running) running.stop();
  else if (!$("tip").hidden) $("tip").hidden = true;
  else if (isText) { at.blur(); $("title").focus(); }
}

function onPoint({target}) {
  const span = target.closest?.(".token");
  if (span) showTip($("tip"), span, $("composer").getBoundingClientRect().top);
  else if (!target.closest?.("#tip")) $("tip").hidden = true;
}

onSubmit($("composer"), () => {
  if (send($("draft").value, listPath(chat).at(-1) ?? "")) $("draft").value = "";
});
onSubmit($("key-form"), () => { session[KEY] = $("key").value; loadModels(); });
for (const one of fields) one.onchange = () => {      // the list of models is outside the form
  chat.settings = readForm();
  keep(chat);
  if (!document.querySelector(".edit")) show();
};
$("new").onclick = startNew;
$("to-side").onclick = KEYS.s;
$("open-help").onclick = KEYS["?"];
$("stop").onclick = () => { $("turns").lastChild.focus(); running?.stop(); };
$("again").onclick = () => chosenModel() ? answer(listPath(chat).at(-1)) : loadModels();
$("export").onclick = () => download(chat);
$("import").onclick = () => $("file").click();
$("file").onchange = () => { importFile($("file").files[0]); $("file").value = ""; };
$("forget").onclick = () => forgetChats(listChats().map(({id}) => id),
  "Forget all conversations that this browser keeps?");
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, onPoint);
document.addEventListener("keydown", onKey);
addEventListener("storage", showList);      // another tab has changed one
addEventListener("pagehide", () => { if (running) keep(running.chat); });
addEventListener("beforeunload", (event) => { if ($("draft").value) event.preventDefault(); });

openSide(innerWidth > NARROW);
openChat(load(location.hash.slice(1)) ?? begin({...readForm(), ...listChats()[0]?.settings}));
loadModels();
