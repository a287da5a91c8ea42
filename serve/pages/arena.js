// The arena: two models answer a prompt side by side, and a vote tells which they are.
import {$, ask, make, makeText, makeTurn, onKey, onSubmit, readEvents, say, storage}
  from "/page.js";

const VERDICTS = {a: "A is better", b: "B is better", tie: "a tie", both_bad: "both are bad"};
const SAME_STATE = ["queue_full", "too_many_battles", "too_many_turns", "closing"];   // of errors
const NO_VOTE = ["voted", "no_vote", "unknown_battle"];
const saved = storage("sessionStorage");        // the battle and the voter's name, of this tab
let state = "new";              // or "drawing", "ready", "voting", "voted", "over"
let stopper = null;             // ends the request for answers

function change(to) {
  state = document.body.className = to;         // arena.css shows what belongs to it
  const isDone = state === "voted" || state === "over";
  for (const button of $("verdicts").children) button.disabled = state !== "ready";
  $("send").disabled = state === "drawing";
  $("turns").ariaBusy = state === "drawing";
  $("next").textContent = isDone ? "Next battle" : "Skip this battle";
  $("prompt-label").textContent = state === "new" ? "Your prompt" : "Or ask both further";
  if (isDone) $("next").focus();
  if (state === "ready" && !$("prompt").value) $("verdicts").focus();     // so that keys vote
}

function addTurn(prompt) {
  const number = $("turns").children.length + 1;
  const cards = ["A", "B"].map((letter) => make("section",
    {className: "answer", ariaLabel: `Answer ${letter}${number > 1 ? `, turn ${number}` : ""}`},
    make("h2", {}, `Answer ${letter}`, make("span", {className: "name"})),
    makeText(""), make("p", {className: "note"})));
  $("turns").append(make("article", {ariaLabel: `Turn ${number}`},
    makeTurn("you", prompt), make("div", {className: "pair"}, ...cards)));
  return cards;
}

function extend(cards, {texts, finishes}) {
  cards.forEach((card, side) => {
    const [, text, note] = card.children;
    text.append(texts[side]);
    if (finishes[side] === "length") note.textContent = "cut at the limit of length";
    else if (finishes[side] && !text.textContent) note.textContent = "(empty)";
  });
}

async function answer() {
  const prompt = $("prompt").value, before = state;
  if (!prompt.trim() || !["new", "ready"].includes(state)) return;
  const cards = addTurn(prompt), sent = {prompt, battle: saved.battle ?? ""};
  stopper = new AbortController();
  change("drawing");
  say("Both models are answering.");
  $("prompt").value = "";
  cards[0].scrollIntoView({block: "nearest"});
  try {
    for await (const event of readEvents(await ask("/arena/ask", sent, stopper.signal))) {
      if (event.battle) saved.battle = event.battle;
      if (event.texts) extend(cards, event);
      if (event.state) change(event.state);
      if (state === "ready") break;
    }
    say("Both answers are complete: vote, or ask both further.");
  } catch ({code, message}) {
    $("prompt").value ||= prompt;
    const isSame = SAME_STATE.includes(code) || (code && !saved.battle);
    if (isSame) cards[0].closest("article").remove();
    change(isSame ? before : "over");
    if (stopper.signal.aborted) say("Stopped: no vote is counted.", true);
    else say(code ? message : "The connection was lost: no vote is counted.", true);
  }
}

async function vote(verdict) {
  change("voting");
  saved.annotator = $("annotator").value.trim();
  try {
    const sent = {battle: saved.battle, verdict, annotator: saved.annotator};
    reveal(await (await ask("/arena/vote", sent)).json());
  } catch ({code, message}) {
    change(NO_VOTE.includes(code) ? "over" : "ready");
    say(message, true);
  }
}

function reveal({models, verdict}) {
  change("voted");
  document.querySelectorAll(".answer").forEach((card, place) => {
    card.querySelector(".name").textContent = models[place % 2];
    card.classList.toggle("chosen", verdict === "ab"[place % 2]);
  });
  say(`You voted: ${VERDICTS[verdict]}. A is ${models[0]}, B is ${models[1]}.`);
}

function begin(text = "") {
  delete saved.battle;
  $("turns").replaceChildren();
  change("new");
  say(text);
  $("prompt").focus();
}

async function restore() {
  try {
    const found = await (await ask(`/arena/battle?id=${saved.battle}`)).json();
    if (found.state === "ready" || found.state === "voted") {
      for (const turn of found.turns) extend(addTurn(turn.prompt), turn);
      if (found.state === "voted") reveal(found);
      else change("ready");
    } else {
      begin("The answers were not complete when this page was left: no vote is counted.");
      $("prompt").value = found.turns.at(-1)?.prompt ?? "";
    }
  } catch ({code, message}) {
    begin(NO_VOTE.includes(code) ? "" : message);
  }
}

onKey((key, _at, isText) => {
  const button = isText ? null : $("verdicts").children[key - 1];
  button?.click();
  return button;
});
onSubmit($("ask"), answer);
$("annotator").value = saved.annotator ?? "";
$("stop").onclick = () => stopper.abort();
$("next").onclick = () => begin();
for (const button of $("verdicts").children) button.onclick = () => vote(button.value);
change("new");
if (saved.battle) restore();
