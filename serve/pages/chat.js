// The chat page: one conversation is shown, and an answer is written at a time.
import {addNode, begin, childrenOf, download, forget, listChats, listPath, load, nextSeed, save,
  titleOf} from "/conversations.js";
import {$, make, onKey, onSubmit, say, visible} from "/page.js";
import {chosenModel, fetchModels, readForm, writeForm} from "/settings.js";
import {draw, makeRequest} from "/stream.js";
import {makeButton, makeTurn, showTip} from "/turns.js";

const NARROW = 900;
let chat = null;        // the conversation that is shown
let edited = null;      // the turn that is written anew
let running = null;     // the answer that is written: {id, control, update}

async function loadModels() {
  try {
    await fetchModels();
    writeForm(chat.settings);
    say(chosenModel() ? "" : "No model that writes text is served here.");
    show();
  } catch ({message}) { say(message); }
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

function isReady() {
  if (running) say("An answer is being written: stop it first, or wait for its end.");
  else if (!chosenModel()) say("There is no model to ask.");
  else if ($("settings").checkValidity()) return true;
  else { openSide(true); $("settings").reportValidity(); }
  return false;
}

async function answer(parent) {     // writes one more answer to a turn that is shown
  if (!isReady()) return;
  const failed = childrenOf(chat, parent).filter((id) => !chat.nodes[id].content);
  for (const id of failed) delete chat.nodes[id];
  const path = listPath(chat), settings = chat.settings = readForm();
  const how = {...settings, seed: nextSeed(chat, parent, settings.seed)};  // it can be drawn again
  const turns = path.slice(0, path.indexOf(parent) + 1).map((id) => chat.nodes[id]);
  const request = makeRequest(how, turns, chosenModel().task === "chat");
  const node = {parent, role: "assistant", content: "", spans: how.logprobs ? [] : null,
    finish: "cut: the page was left", how};
  const id = addNode(chat, node);
  running = {id, control: new AbortController()};
  say("");
  save(chat);
  show();
  scrollTo(0, document.body.scrollHeight);
  await draw(node, request, running.control.signal, () => running.update());
  const wasInside = $("turns").contains(document.activeElement);
  running = null;
  save(chat);
  follow(() => $(id)?.replaceWith(showTurn(id)));       // the other turns stay as they are
  if (wasInside) $(id)?.focus({preventScroll: true});
  $("said").textContent = `Answer: ${visible(node.content || node.finish)}`;
  showRest();
}

function show() {
  const wasInside = $("turns").contains(document.activeElement);
  edited = null;
  $("turns").replaceChildren(...listPath(chat).map(showTurn));
  if (wasInside) $("turns").lastChild?.focus({preventScroll: true});
  showRest();
}

function showRest() {
  const last = chat.nodes[listPath(chat).at(-1)];
  $("title").textContent = titleOf(chat);
  $("title").className = last ? "unseen" : "";      // the first turn says it
  $("about").hidden = !!last;
  $("send").hidden = $("side").inert = $("new").disabled = !!running;
  $("stop").hidden = !running;
  $("chats").replaceChildren(...listChats().map((one) => make("li", {},
    makeButton(titleOf(one), () => openChat(load(one.id)),
      {className: "open", ariaCurrent: one.id === chat.id}),
    makeButton("×", () => forgetChats([one.id], `Forget "${titleOf(one)}"?`),
      {ariaLabel: `Forget ${titleOf(one)}`}))));
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
  if ($("draft").value && !edited) return say("Send what you have written first, or clear it.");
  edited = chat.nodes[id];
  say("What you send becomes another version of this message. Esc leaves it as it was.");
  $("draft").value = edited.content;
  $("draft").focus();
}

function openSide(isOpen) {
  document.body.classList.toggle("with-side", isOpen);
  $("to-side").ariaExpanded = isOpen;
}

const STEPS = {ArrowLeft: "previousSibling", ArrowRight: "nextSibling"};

onKey((key, at) => {
  if (at.matches(".token") && STEPS[key]) at[STEPS[key]]?.focus();
  else if (key !== "Escape") return false;
  else if (edited) { $("draft").value = ""; say(""); show(); }
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
  const content = $("draft").value, parent = edited?.parent ?? listPath(chat).at(-1) ?? "";
  if (!content.trim() || !isReady()) return;
  $("draft").value = "";
  answer(addNode(chat, {parent, role: "user", content}));
});
$("new").onclick = () => { openChat(begin(readForm())); $("draft").focus(); };
$("to-side").onclick = () => openSide(!document.body.classList.contains("with-side"));
$("stop").onclick = () => { $("turns").lastChild.focus(); running?.control.abort(); };
$("export").onclick = () => download(chat);
$("forget").onclick = () => forgetChats(listChats().map(({id}) => id),
  "Forget all conversations that this browser keeps?");
addEventListener("beforeunload", (event) => { if ($("draft").value) event.preventDefault(); });

openSide(innerWidth > NARROW);
openChat(load(location.hash.slice(1)) ?? begin({...readForm(), ...listChats()[0]?.settings}));
loadModels();
