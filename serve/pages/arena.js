"use strict";
// Texts of models and people become text nodes only; nothing here parses markup.
const $ = (id) => document.getElementById(id);
const VERDICTS = {a: "A is better", b: "B is better", tie: "a tie", both_bad: "both are bad"};
const KEYS = {1: "a", a: "a", 2: "b", b: "b", 3: "tie", t: "tie", 4: "both_bad", n: "both_bad"};
const SAME_STATE = ["queue_full", "too_many_battles", "too_many_turns", "closing"];   // of errors
const ENDS = {AbortError: "Stopped: no vote is counted.",
  TypeError: "The connection was lost: no vote is counted."};
const saved = sessionStorage;   // the battle, the voter's name and the key, of this tab
let state = "";                 // "", "drawing", "ready", "voting", "voted" or "over"
let stopper = null;             // ends the request for answers

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, isFault = false) {
  $("message").textContent = text;
  $("message").classList.toggle("fault", isFault);
}

async function request(path, body, signal) {
  const headers = body ? {"Content-Type": "application/json"} : {};
  if (saved.key) headers.Authorization = `Bearer ${saved.key}`;
  const how = {method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body)};
  const reply = await fetch(path, how);
  if (reply.ok) return reply;
  const {error} = await reply.json();
  if (reply.status === 401 && await askForKey()) return request(path, body, signal);
  throw Object.assign(new Error(error.message), {code: error.code});
}

function askForKey() {
  $("login").showModal();
  return new Promise((resolve) => {
    $("login").onclose = () => resolve(saved.key = $("key").value.trim());
  });
}

function change(to) {
  state = to;
  const isDrawing = state === "drawing", isDone = state === "voted" || state === "over";
  $("lede").hidden = state !== "";
  $("verdicts").hidden = state === "" || isDone;
  for (const button of $("verdicts").children) button.disabled = state !== "ready";
  $("ask").hidden = isDone;
  $("send").disabled = isDrawing;
  $("stop").hidden = !isDrawing;
  $("next").hidden = state !== "ready" && !isDone;
  $("next").textContent = isDone ? "Next battle" : "Skip this battle";
  $("next").classList.toggle("main", isDone);
  $("prompt-label").textContent = state === "" ? "Your prompt" : "Or ask both further";
  $("turns").setAttribute("aria-busy", isDrawing);
  if (isDone) $("next").focus();
  if (state === "ready" && !$("prompt").value) $("verdicts").focus();     // so that keys vote
}

function addTurn(prompt) {
  const number = $("turns").children.length + 1;
  const cards = ["A", "B"].map((letter) => make("section",
    {className: "answer", ariaLabel: `Answer ${letter}${number > 1 ? `, turn ${number}` : ""}`},
    make("h2", {}, `Answer ${letter}`, make("span", {className: "name"})),
    make("div", {className: "text", dir: "auto"}), make("p", {className: "note"})));
  $("turns").append(make("article", {ariaLabel: `Turn ${number}`},
    make("div", {className: "turn"}, make("div", {className: "who", textContent: "You"}),
      make("div", {className: "text", dir: "auto", textContent: prompt})),
    make("div", {className: "pair"}, ...cards)));
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

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", parts; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    [rest, ...parts] = (rest + value).split("\n\n").reverse();
    for (const part of parts.reverse()) yield JSON.parse(part.slice("data: ".length));
  }
}

async function ask() {
  const prompt = $("prompt").value, before = state;
  if (!prompt.trim() || !["", "ready"].includes(state)) return;
  const cards = addTurn(prompt);
  stopper = new AbortController();
  change("drawing");
  say("Both models are answering.");
  $("prompt").value = "";
  cards[0].scrollIntoView({block: "nearest"});
  try {
    const sent = {prompt, battle: saved.battle || ""};
    for await (const event of events(await request("/arena/ask", sent, stopper.signal))) {
      if (event.error) throw Object.assign(new Error(event.error.message), event.error);
      if (event.battle) saved.battle = event.battle;
      if (event.texts) extend(cards, event);
      if (event.state) change(event.state);
    }
    if (state !== "ready") throw new TypeError();
    say("Both answers are complete: vote, or ask both further.");
  } catch (error) {
    $("prompt").value ||= prompt;
    if (SAME_STATE.includes(error.code) || (error.code && !saved.battle)) {
      cards[0].closest("article").remove();
      change(before);
    } else change("over");
    say(ENDS[error.name] || error.message, true);
  }
}

async function vote(verdict) {
  change("voting");
  saved.annotator = $("annotator").value.trim();
  try {
    const sent = {battle: saved.battle, verdict, annotator: saved.annotator};
    reveal(await (await request("/arena/vote", sent)).json());
  } catch (error) {
    change(["voted", "no_vote", "unknown_battle"].includes(error.code) ? "over" : "ready");
    say(error.message, true);
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
  change("");
  say(text);
  $("prompt").focus();
}

async function restore() {
  try {
    const found = await (await request(`/arena/battle?id=${saved.battle}`)).json();
    if (found.state === "ready" || found.state === "voted") {
      for (const turn of found.turns) extend(addTurn(turn.prompt), turn);
      if (found.state === "voted") reveal(found);
      else change("ready");
    } else {
      begin("The answers were not complete when this page was left: no vote is counted.");
      $("prompt").value = found.turns.at(-1)?.prompt || "";
    }
  } catch (error) {
    begin(["unknown_battle", "voted"].includes(error.code) ? "" : error.message);
  }
}

document.addEventListener("keydown", (event) => {
  const {key, target, ctrlKey, metaKey, altKey, shiftKey, isComposing} = event;
  const isText = target.matches("textarea, input");
  if ($("login").open || ctrlKey || metaKey || altKey || isComposing) return;
  if (key === "Enter" && target === $("prompt") && !shiftKey) ask();
  else if (key === "Escape" && isText) $("task").focus();
  else if (!isText && state === "ready" && KEYS[key]) vote(KEYS[key]);
  else return;
  event.preventDefault();
});
$("annotator").value = saved.annotator || "";
$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("stop").onclick = () => stopper.abort();
$("next").onclick = () => begin();
for (const button of $("verdicts").children) button.onclick = () => vote(button.dataset.verdict);
change("");
if (saved.battle) restore();
