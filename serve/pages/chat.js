// The chat page: one conversation is shown, and an answer is written at a time.
import {addNode, begin, download, forget, listChats, listPath, load, nextSeed, save, titleOf}
  from "/conversations.js";
import {$, onKey, onSubmit, say, visible} from "/page.js";
import {chosenModel, describeModel, fetchModels, fields, readForm, writeForm} from "/settings.js";
import {draw, makeRequest} from "/stream.js";
import {makeEdit, makeEntry, makeTurn, showTip} from "/turns.js";

const NARROW = 900;
let chat = null;        // the conversation that is shown
let running = null;     // the answer that is written: {id, control, update}

async function loadModels() {
  try {
    await fetchModels();
    writeForm(chat.settings);
    say(chosenModel() ? "" : "No model that writes text is served here.");
    show();
  } catch (error) { refuse(error); }
}

function refuse({message, code}) {
  const isTooLong = code === "context_length_exceeded";
  say(isTooLong ? `${message} Edit an earlier message, or ask for a shorter answer.` : message);
  showRest();
  scrollTo(0, document.body.scrollHeight);      // where the line is
}

function openChat(one) {
  chat = one;
  if (innerWidth <= NARROW) openSide(false);
  history.replaceState(null, "", `#${chat.id}`);
  writeForm(chat.settings);
  say("");
  show();
}

function forgetChats(ids, question) {
  if (!confirm(question)) return;
  forget(ids);
  openChat(ids.includes(chat.id) ? begin(readForm()) : chat);
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
  const path = listPath(chat), before = chat.picked[parent], given = readForm();
  const how = {...given, seed: nextSeed(chat, parent, given.seed)};  // it can be drawn again
  const turns = path.slice(0, path.indexOf(parent) + 1).map((id) => chat.nodes[id]);
  const request = makeRequest(how, turns, chosenModel().task === "chat");
  const node = {parent, role: "assistant", content: "", spans: how.logprobs ? [] : null,
    finish: "cut: the page was left", how};
  chat.settings = given;
  say("");
  save(chat);
  running = {id: addNode(chat, node), control: new AbortController()};
  show();
  scrollTo(0, document.body.scrollHeight);
  end(node, before, await draw(node, request, running.control.signal, () => running.update()));
}

function end(node, before, fault) {
  const {id} = running, wasInside = $("turns").contains(document.activeElement);
  running = null;
  if (node.content || !fault) {
    $(id).replaceWith(showTurn(id));    // the other turns stay as they are
    if (wasInside) $(id).focus({preventScroll: true});
    $("said").textContent = `Answer: ${visible(node.content)}`;
  } else {
    delete chat.nodes[id];
    chat.picked[node.parent] = before;
    show();
    refuse(fault);
  }
  save(chat);
  showRest();
}

// --- what is shown ----------------------------------------------------------------------------

function show() {
  const wasInside = $("turns").contains(document.activeElement);
  $("turns").replaceChildren(...listPath(chat).map(showTurn));
  if (wasInside) $("turns").lastChild?.focus({preventScroll: true});
  showRest();
}

function showRest() {
  const last = chat.nodes[listPath(chat).at(-1)];
  $("title").textContent = titleOf(chat);
  $("title").className = last ? "unseen" : "";      // the first turn says it
  $("about").textContent = last ? ""
    : `${describeModel()} Conversations are kept in this browser alone.`;
  $("again").hidden = !!running || (!!chosenModel() && last?.role !== "user");
  $("send").hidden = $("side").inert = $("new").disabled = !!running;
  $("stop").hidden = !running;
  $("chats").replaceChildren(...listChats().map((one) => makeEntry(titleOf(one),
    one.id === chat.id, () => openChat(load(one.id)),
    () => forgetChats([one.id], `Forget "${titleOf(one)}"?`))));
}

function showTurn(id) {
  const isWriting = running?.id === id;
  const {article, write} = makeTurn(chat, id, {edit, retry: answer, turnTo}, isWriting);
  if (isWriting) running.update = () => follow(write);
  return article;
}

function follow(change) {       // stays at the end of the page if it is there
  const isAtEnd = innerHeight + scrollY > document.body.scrollHeight - 60;
  change();
  if (isAtEnd) scrollTo(0, document.body.scrollHeight);
}

function turnTo(id, step) {
  chat.picked[chat.nodes[id].parent] = id;
  save(chat);
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
  $("to-side").ariaExpanded = isOpen;
}

// --- keys and buttons -------------------------------------------------------------------------

const STEPS = {ArrowLeft: "previousSibling", ArrowRight: "nextSibling"};

onKey((key, at) => {
  if (at.matches(".token") && STEPS[key]) at[STEPS[key]]?.focus();
  else if (key !== "Escape") return false;
  else if (at.closest(".edit")) at.form.elements.cancel.click();
  else if (running) running.control.abort();
  else if (!$("tip").hidden) $("tip").hidden = true;
  else return false;
  return true;
});
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, ({target}) => {
  const span = target.closest?.(".token");
  if (span) showTip($("tip"), span, $("composer").getBoundingClientRect().top);
  else if (!target.closest?.("#tip")) $("tip").hidden = true;
});
onSubmit($("composer"), () => {
  if (send($("draft").value, listPath(chat).at(-1) ?? "")) $("draft").value = "";
});
for (const one of fields) one.onchange = () => {      // the list of models is outside the form
  chat.settings = readForm();
  save(chat);
  showRest();
};
$("new").onclick = () => { openChat(begin(readForm())); $("draft").focus(); };
$("to-side").onclick = () => openSide(!document.body.classList.contains("with-side"));
$("stop").onclick = () => { $("turns").lastChild.focus(); running?.control.abort(); };
$("again").onclick = () => chosenModel() ? answer(listPath(chat).at(-1)) : loadModels();
$("export").onclick = () => download(chat);
$("forget").onclick = () => forgetChats(listChats().map(({id}) => id),
  "Forget all conversations that this browser keeps?");
addEventListener("beforeunload", (event) => { if ($("draft").value) event.preventDefault(); });

openSide(innerWidth > NARROW);
openChat(load(location.hash.slice(1)) ?? begin({...readForm(), ...listChats()[0]?.settings}));
loadModels();
