// The labelling page: shows one item after another, and sends what is said about it.
import {$, ask, make, makeText, makeTurn, onKey, say} from "/page.js";

const LETTERS = "ABCDEFGHI";
const TASKS = {pair: "Which answer is better?", rank: "Rank the answers, 1 for the best",
  write: "Write the ideal answer", none: "Nothing is left for you now. Thank you!"};
const GONE = ["done_already", "full", "unknown_item"];      // errors after which another is next
const name = new URLSearchParams(location.search).get("annotator") ?? "";
const next = `/api/next?annotator=${encodeURIComponent(name)}`;
const choices = [...$("choices").children];
let shown = {};         // the last reply of the server
let kind = "none";      // of the item that is shown
let cards = [];         // of its answers
let said = {};          // ranks of the answers, 0 for none yet, and whether both are bad
let isBusy = false;

async function send(path, body, told = "") {
  if (isBusy) return;
  isBusy = $("submit").disabled = true;
  const value = await ask(path, body).then((reply) => reply.json()).catch((error) => ({error}));
  isBusy = $("submit").disabled = false;
  if (value.error) refuse(value.error);
  else show(value, told);
}

function refuse({message, code}) {
  if (GONE.includes(code)) send(next, null, `Not saved. ${message} Here is the next one.`);
  else say(code === "no_name" && !name ? "" : message, true);
  if (code !== "no_name") return;
  $("start").hidden = false;
  $("annotator").value = name;
  $("annotator").focus();
}

function show(value, told) {
  shown = value;
  const {item, given, done, left} = shown, {answers = [], messages = []} = item ?? {};
  kind = item?.kind ?? "none";
  said = {ranks: answers.map(() => 0), both_bad: false};
  cards = answers.map(showAnswer);
  $("count").textContent = `${shown.annotator}: ${done} done, ${left} left`;
  Object.assign($("bar"), {max: done + left || 1, value: done, hidden: false});
  Object.assign($("work"), {className: kind, hidden: false});  // label.css shows what belongs to it
  $("task").textContent = TASKS[kind];
  $("prompt").replaceChildren(...messages.map(({role, content}) => makeTurn(role, content)));
  $("answers").replaceChildren(...cards);
  $("text").value = $("reason").value = "";
  $("skip-reason").replaceChildren(make("option", {value: "", textContent: "why?"}),
    ...shown.skips.map((word) => make("option", {textContent: word})));
  $("undo").disabled = !done;
  for (const one of choices) one.ariaPressed = false;
  if (given) restore(given);
  say(told);
  $("task").focus({preventScroll: true});     // a screen reader goes on from there
  scrollTo(0, 0);
}

function restore({text = "", reason, ranks, both_bad: isBad, flags}) {  // what was said and undone
  $("text").value = text;
  $("reason").value = reason;
  if (kind === "rank") ranks.forEach((rank, index) => setRank(index, rank));
  if (kind === "pair") choices.find(({dataset}) => dataset.ranks === ranks.join("")
    && (dataset.key === "0") === isBad).click();
  cards.forEach((card, index) => card.querySelectorAll("input").forEach((box) => {
    box.checked = flags[index]?.includes(box.value);
  }));
}

function showAnswer(text, index) {
  const letter = LETTERS[index], isRanked = kind === "rank";
  const heading = make("h2", {draggable: isRanked}, `Answer ${letter}`);  // the text is selectable
  const flags = shown.flags.map((word) => make("label", {},
    make("input", {type: "checkbox", value: word}), ` ${word}`));
  if (isRanked) heading.append(make("label", {}, "Rank ", make("select",
    {ariaLabel: `Rank of answer ${letter}`, onchange: ({target}) => setRank(index, +target.value)},
    ...["–", ...said.ranks.map((_, place) => place + 1)].map((textContent, value) =>
      make("option", {value, textContent})))));
  const card = make("li", {className: "answer", ariaLabel: `Answer ${letter}`}, heading,
    makeText(text || "(empty)"), make("div", {className: "flags", role: "group",
      ariaLabel: `Flags of answer ${letter}`}, ...flags));
  if (isRanked) card.tabIndex = 0;
  return card;
}

function setRank(index, rank) {
  said.ranks[index] = rank;
  cards[index].querySelector("select").value = rank;
  say(`Answer ${LETTERS[index]} has rank ${rank || "none"}.`);
  mark();
}

function choose(button) {
  said = {ranks: [...button.dataset.ranks].map(Number), both_bad: button.dataset.key === "0"};
  for (const one of choices) one.ariaPressed = one === button;
  mark();
}

function mark() {
  cards.forEach((card, index) =>
    card.classList.toggle("chosen", said.ranks[index] === 1 && !said.both_bad));
}

const head = () => ({annotator: shown.annotator, item: shown.item.id, ticket: shown.item.ticket});

function submit() {
  const text = $("text").value, reason = $("reason").value, isText = kind === "write";
  const flags = cards.map((card) =>
    [...card.querySelectorAll("input:checked")].map(({value}) => value));
  if (kind === "none") return;
  if (isText && !text.trim()) say("Write an answer, or skip this one.", true);
  else if (said.ranks.includes(0)) say("Choose first.", true);
  else send("/api/label", {...head(), reason, ...isText ? {text} : {...said, flags}}, "Saved.");
}

function skip() {
  const reason = $("skip-reason").value;
  if (reason) send("/api/skip", {...head(), reason}, "Skipped.");
  else { say("Choose why you skip this one.", true); $("skip-reason").focus(); }
}

function undo() {
  if (shown.done) send("/api/undo", {annotator: shown.annotator}, "Undone: label it again.");
}

const KEYS = {u: undo, r: () => $("reason").focus(), s: () => $("skip-reason").focus(),
  f: () => document.querySelector(".flags input")?.focus()};
const SAME = {ArrowLeft: "1", ArrowRight: "2", "=": "3"}, STEPS = {ArrowUp: -1, ArrowDown: 1};

onKey((key, at, isText) => {
  const isPlain = !isText && $("keys").checked;
  if (key === "Ctrl+Enter" || (key === "Enter" && !isText && !at.matches("button, a"))) submit();
  else if (isPlain && KEYS[key]) KEYS[key]();
  else if (isPlain && kind === "pair") return chooseByKey(SAME[key] ?? key);
  else if (isPlain && kind === "rank") return rankByKey(key, at.closest(".answer"));
  else return false;
  return true;
});

function chooseByKey(key) {
  const button = choices.find(({dataset}) => dataset.key === key);
  button?.click();
  return button;
}

function rankByKey(key, card) {
  const order = [...$("answers").children], place = order.indexOf(card), step = STEPS[key];
  const index = card ? cards.indexOf(card) : said.ranks.indexOf(0);
  if (step) order[card ? place + step : 0]?.focus();
  else if (key >= "1" && key <= `${cards.length}` && cards[index]) setRank(index, Number(key));
  else return false;
  return true;
}

const pointAt = (card) => cards.forEach((one) => one.classList.toggle("over", one === card));
let dragged = null;     // the card
$("answers").ondragstart = ({target, dataTransfer}) => {
  dragged = target.closest?.("h2")?.parentElement;
  if (dragged) dataTransfer.setData("text/plain", "");  // some browsers drag nothing without it
};
$("answers").ondragover = (event) => {
  event.preventDefault();
  pointAt(event.target.closest(".answer"));
};
$("answers").ondragend = () => { dragged = null; pointAt(null); };
$("answers").ondrop = (event) => {
  const card = event.target.closest(".answer"), order = [...$("answers").children];
  event.preventDefault();
  if (!card || !dragged || card === dragged) return;
  if (order.indexOf(dragged) < order.indexOf(card)) card.after(dragged);
  else card.before(dragged);
  [...$("answers").children].forEach((one, place) => setRank(cards.indexOf(one), place + 1));
  say("The ranks are those of the new order; equal ranks can be chosen in the lists.");
};
for (const button of choices) button.onclick = () => choose(button);
$("to-progress").search = location.search;
for (const [id, act] of Object.entries({submit, skip, undo})) $(id).onclick = act;
addEventListener("beforeunload", (event) => {
  if ($("text").value.trim()) event.preventDefault();     // an answer that is not saved yet
});
send(next);
