"use strict";
// Texts of models and people become text nodes only; nothing here parses markup.
const $ = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGHI";
const TASKS = {pair: "Which answer is better?", rank: "Rank the answers, 1 for the best",
  write: "Write the ideal answer"};
const CHOICES = [["A is better", [1, 2], "1"], ["B is better", [2, 1], "2"],
  ["Equally good", [1, 1], "3"], ["Both bad", [1, 1], "0"]];
const name = new URLSearchParams(location.search).get("annotator") || "";
let shown = null;       // the last reply of the server
let ranks = [];         // of the answers as shown, 0 for none yet
let bothBad = false;
let isBusy = false;

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, isFault = false) {
  $("message").textContent = text;
  $("message").classList.toggle("fault", isFault);
}

async function ask(path, body, done) {
  if (isBusy) return;
  isBusy = $("submit").disabled = true;
  let reply, value;
  try {
    reply = await fetch(path, body && {method: "POST", body: JSON.stringify(body),
      headers: {"Content-Type": "application/json"}});
    value = await reply.json();
  } catch {
    say("The server does not answer. What you entered is still here: try again.", true);
    return;
  } finally {
    isBusy = $("submit").disabled = false;
  }
  if (reply.ok) show(value, done);
  else refuse(value.error);
}

function refuse(error) {
  if (error.code === "no_name") {
    $("start").hidden = false;
    $("annotator").value = name;
    say(name ? error.message : "", true);
    $("annotator").focus();
  } else if (["done_already", "full", "unknown_item"].includes(error.code)) {
    ask(next(), null, `Not saved: ${error.message}. Here is the next one.`);
  } else say(error.message, true);
}

const next = () => `/api/next?annotator=${encodeURIComponent(name)}`;

function show(value, done) {
  const {item} = shown = value;
  const total = value.done + value.left;
  $("count").textContent = `${value.annotator}: ${value.done} done, ${value.left} left`;
  Object.assign($("bar"), {max: total || 1, value: value.done, hidden: false});
  $("work").hidden = false;
  $("task").textContent = item ? TASKS[item.kind] : "Nothing is left for you now. Thank you!";
  $("prompt").replaceChildren(...(item ? item.messages.map(showTurn) : []));
  ranks = item ? item.answers.map(() => 0) : [];
  bothBad = false;
  $("answers").className = item ? item.kind : "";
  $("answers").replaceChildren(...(item ? item.answers.map(showAnswer) : []));
  const isPair = item?.kind === "pair";
  $("choices").hidden = !isPair;
  $("choices").replaceChildren(...(isPair ? CHOICES.map(showChoice) : []));
  $("writing").hidden = item?.kind !== "write";
  for (const part of [$("reason").parentElement, $("submit"), $("skip").parentElement]) {
    part.hidden = !item;
  }
  $("text").value = $("reason").value = "";
  $("skip-reason").replaceChildren(make("option", {value: "", textContent: "why?"}),
    ...value.skips.map((word) => make("option", {textContent: word})));
  $("undo").disabled = value.done === 0;
  if (value.given) restore(value.given);
  say(done || "");
  $("task").focus({preventScroll: true});     // a screen reader goes on from there
  scrollTo(0, 0);
}

function restore(given) {     // what was said before it was undone
  $("text").value = given.text || "";
  $("reason").value = given.reason;
  if (shown.item.kind === "rank") given.ranks.forEach((rank, index) => setRank(index, rank));
  if (shown.item.kind === "pair") {
    const place = given.both_bad ? 3 : CHOICES.findIndex((one) => `${one[1]}` === `${given.ranks}`);
    $("choices").children[place].click();
  }
  [...$("answers").children].forEach((card, index) => card.querySelectorAll("input").forEach(
    (box) => { box.checked = given.flags[index]?.includes(box.value); }));
}

function showTurn({role, content}) {
  return make("div", {className: `turn ${role}`},
    make("div", {className: "who", textContent: role}),
    make("div", {className: "text", dir: "auto", textContent: content}));
}

function showAnswer(text, index) {
  const letter = LETTERS[index];
  const heading = make("h2", {}, `Answer ${letter}`);
  const card = make("li", {className: "answer"}, heading,
    make("div", {className: "text", dir: "auto", textContent: text || "(empty)"}),
    make("div", {className: "flags"}, ...shown.flags.map((word) => make("label", {},
      make("input", {type: "checkbox", value: word}), ` ${word}`))));
  card.lastChild.setAttribute("role", "group");
  card.lastChild.setAttribute("aria-label", `Flags of answer ${letter}`);
  card.dataset.index = index;
  if (shown.item.kind !== "rank") return card;
  const select = make("select", {onchange: () => setRank(index, Number(select.value))},
    make("option", {value: 0, textContent: "–"}),
    ...ranks.map((_, k) => make("option", {value: k + 1, textContent: k + 1})));
  heading.append(make("label", {}, "Rank ", select));
  select.setAttribute("aria-label", `Rank of answer ${letter}`);
  card.setAttribute("aria-label", `Answer ${letter}`);
  Object.assign(heading, {draggable: true,    // not the text, which can be selected
    ondragstart: (event) => event.dataTransfer.setData("text/plain", index)});
  Object.assign(card, {tabIndex: 0,
    ondragover: (event) => { event.preventDefault(); card.classList.add("over"); },
    ondragleave: () => card.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop(card, event); }});
  return card;
}

function drop(card, event) {
  const cards = [...$("answers").children];
  cards.forEach((one) => one.classList.remove("over"));
  const index = event.dataTransfer.getData("text/plain");
  const dragged = cards.find((one) => one.dataset.index === index);
  if (!dragged || dragged === card) return;
  if (cards.indexOf(dragged) < cards.indexOf(card)) card.after(dragged);
  else card.before(dragged);
  [...$("answers").children].forEach((one, k) => setRank(Number(one.dataset.index), k + 1));
  say("The ranks are those of the new order; equal ranks can be chosen in the lists.");
}

function showChoice([text, given, key]) {
  const isBad = key === "0";
  const button = make("button", {type: "button", onclick: () => {
    [ranks, bothBad] = [[...given], isBad];
    for (const other of $("choices").children) other.setAttribute("aria-pressed", other === button);
    mark();
  }}, `${text} `, make("kbd", {textContent: key}));
  button.setAttribute("aria-pressed", "false");
  button.dataset.key = key;
  return button;
}

function setRank(index, rank) {
  ranks[index] = rank;
  document.querySelector(`[data-index="${index}"] select`).value = rank;
  say(`Answer ${LETTERS[index]} has rank ${rank || "none"}.`);
  mark();
}

function mark() {
  for (const card of $("answers").children) {
    card.classList.toggle("chosen", ranks[card.dataset.index] === 1 && !bothBad);
  }
}

const head = () => ({annotator: shown.annotator, item: shown.item.id, ticket: shown.item.ticket});

function submit() {
  if (!shown?.item) return;
  const body = {...head(), reason: $("reason").value};
  if (shown.item.kind === "write") {
    if (!$("text").value.trim()) { say("Write an answer, or skip this one.", true); return; }
    body.text = $("text").value;
  } else {
    if (ranks.includes(0)) { say("Choose first; ? lists the keys.", true); return; }
    const cards = [...$("answers").children].sort((a, b) => a.dataset.index - b.dataset.index);
    Object.assign(body, {ranks, both_bad: bothBad, flags: cards.map((card) =>
      [...card.querySelectorAll("input:checked")].map((box) => box.value))});
  }
  ask("/api/label", body, "Saved.");
}

function skip() {
  if (!shown?.item) return;
  const reason = $("skip-reason").value;
  if (reason) ask("/api/skip", {...head(), reason}, "Skipped.");
  else { say("Choose why you skip this one.", true); $("skip-reason").focus(); }
}

function undo() {
  if (shown?.done) ask("/api/undo", {annotator: shown.annotator}, "Undone: label it again.");
}

const KEYS = {u: undo, r: () => $("reason").focus(), s: () => $("skip-reason").focus(),
  f: () => document.querySelector(".flags input")?.focus(), "?": () => $("help").showModal()};
const SAME = {ArrowLeft: "1", ArrowRight: "2", "=": "3"};

function onKey(event) {
  const at = event.target;
  const isText = at.matches("textarea, input[name], select");
  if ($("help").open || event.altKey || event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  else if (event.ctrlKey || event.metaKey) return;
  else if (event.key === "Escape" && isText) { at.blur(); $("task").focus(); }
  else if (event.key === "Enter" && !isText && !at.matches("button, a, summary")) submit();
  else if (!isText && $("keys").checked && KEYS[event.key]) KEYS[event.key]();
  else if (!isText && choose(event.key, at)) ;
  else return;
  event.preventDefault();
}

function choose(key, at) {
  if (shown?.item?.kind === "pair") {
    const button = [...$("choices").children].find((one) => one.dataset.key === (SAME[key] || key));
    if (!$("keys").checked || !button) return false;
    button.click();
    return true;
  }
  if (shown?.item?.kind !== "rank") return false;
  const cards = [...$("answers").children];
  const place = cards.indexOf(at.closest(".answer"));
  if (key === "ArrowDown" || key === "ArrowUp") {
    cards[place < 0 ? 0 : place + (key === "ArrowDown" ? 1 : -1)]?.focus();
    return true;
  }
  const rank = Number(key);
  if (!$("keys").checked || !ranks.some((_, k) => k + 1 === rank)) return false;
  const index = place >= 0 ? Number(cards[place].dataset.index) : ranks.indexOf(0);
  if (index >= 0) setRank(index, rank);
  return true;
}

$("to-progress").search = location.search;
$("submit").onclick = submit;
$("skip").onclick = skip;
$("undo").onclick = undo;
$("open-help").onclick = KEYS["?"];
document.addEventListener("keydown", onKey);
addEventListener("beforeunload", (event) => {
  if ($("text").value.trim()) event.preventDefault();     // an answer that is not saved yet
});
ask(next());
