"use strict";
// Texts of models and people become text nodes only; nothing here parses markup.
const $ = (id) => document.getElementById(id);
const NOTES = {length: "cut at the limit of length"};
const VERDICTS = {a: "You voted: A is better.", b: "You voted: B is better.",
  tie: "You voted: a tie.", both_bad: "You voted: both are bad."};
const KEYS = {1: "a", a: "a", 2: "b", b: "b", 3: "tie", t: "tie", 4: "both_bad", n: "both_bad"};
const buttons = [...$("verdicts").children];
let battle = sessionStorage.battle || "";   // the id of the one on the page
let state = "";                             // "", "drawing", "ready", "over" or "voted"
let stopper = null;                         // ends the request for answers

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
  if (sessionStorage.key) headers.Authorization = `Bearer ${sessionStorage.key}`;
  const reply = await fetch(path, {method: body ? "POST" : "GET", headers, signal,
    body: body && JSON.stringify(body)});
  if (reply.ok) return reply;
  const {error} = await reply.json();
  if (reply.status === 401 && await askForKey()) return request(path, body, signal);
  throw Object.assign(new Error(error.message), {code: error.code});
}

function askForKey() {
  $("login").returnValue = $("key").value = "";
  $("login").showModal();
  return new Promise((resolve) => { $("login").onclose = () => {
    sessionStorage.key = $("key").value.trim();
    resolve(Boolean(sessionStorage.key));
  }; });
}

function change(to) {
  state = to;
  const isDrawing = state === "drawing", isDone = state === "voted" || state === "over";
  $("verdicts").hidden = !battle || isDone;
  for (const button of buttons) button.disabled = state !== "ready";
  $("ask").hidden = isDone;
  $("send").disabled = $("next").disabled = isDrawing;
  $("stop").hidden = !isDrawing;
  $("lede").hidden = state !== "";
  $("prompt-label").textContent = state === "ready" ? "Or ask both further" : "Your prompt";
  $("next").classList.toggle("main", isDone);
  $("turns").setAttribute("aria-busy", isDrawing);
}

function addTurn(prompt) {
  const number = $("turns").children.length + 1;
  const cards = ["A", "B"].map((letter) => make("section", {className: "answer"},
    make("h2", {}, `Answer ${letter}`, make("span", {className: "name"})),
    make("div", {className: "text", dir: "auto"}), make("p", {className: "note"})));
  cards.forEach((card, side) => card.setAttribute("aria-label",
    `Answer ${"AB"[side]}${number > 1 ? ` of turn ${number}` : ""}`));
  const turn = make("article", {}, make("div", {className: "turn"},
    make("div", {className: "who", textContent: "You"}),
    make("div", {className: "text", dir: "auto", textContent: prompt})),
    make("div", {className: "pair"}, ...cards));
  $("turns").append(turn);
  return cards;
}

function extend(cards, {texts, finishes}) {
  cards.forEach((card, side) => {
    const [, text, note] = card.children;
    text.append(texts[side]);
    if (!finishes[side]) return;
    note.textContent = NOTES[finishes[side]] || "";
    if (!text.textContent) text.append(make("i", {textContent: "(empty)"}));
  });
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function ask() {
  const prompt = $("prompt").value;
  if (!prompt.trim() || !["", "ready"].includes(state)) return;
  const before = state, cards = addTurn(prompt);
  stopper = new AbortController();
  change("drawing");
  say("Both models are answering.");
  $("prompt").value = "";
  cards[0].scrollIntoView({block: "nearest"});
  try {
    const reply = await request("/arena/ask", {prompt, battle}, stopper.signal);
    for await (const event of events(reply)) {
      if (event.error) throw Object.assign(new Error(event.error.message), event.error);
      if (event.battle) { battle = sessionStorage.battle = event.battle; change("drawing"); }
      if (event.texts) extend(cards, event);
      if (event.state) ready();
    }
    if (state === "drawing") throw new Error("The connection was lost: no vote is counted.");
  } catch (error) {
    const isKept = ["queue_full", "too_many_battles", "too_many_turns"].includes(error.code);
    if (isKept || (!battle && error.code)) { cards[0].closest("article").remove(); change(before); }
    else end();
    $("prompt").value ||= prompt;
    say(error.name === "AbortError" ? "Stopped: no vote is counted." : error.message, true);
  }
}

function ready() {
  change("ready");
  say("Both answers are complete: vote, or ask both further.");
  if (!$("prompt").value) $("verdicts").focus({preventScroll: true});   // so that keys vote
}

function end() {
  change("over");
  delete sessionStorage.battle;
  $("next").focus();
}

async function vote(verdict) {
  if (state !== "ready") return;
  change("voting");
  const annotator = $("annotator").value.trim();
  sessionStorage.annotator = annotator;
  try {
    reveal(await (await request("/arena/vote", {battle, verdict, annotator})).json());
  } catch (error) {
    if (["voted", "no_vote", "unknown_battle"].includes(error.code)) end();
    else change("ready");
    say(error.message, true);
  }
}

function reveal({models, verdict}) {
  change("voted");
  for (const turn of $("turns").children) {
    [...turn.querySelectorAll(".answer")].forEach((card, side) => {
      card.querySelector(".name").textContent = models[side];
      card.classList.toggle("chosen", verdict === "ab"[side]);
    });
  }
  say(`${VERDICTS[verdict]} A is ${models[0]}, B is ${models[1]}.`);
  $("next").focus();
}

function begin() {
  battle = "";
  delete sessionStorage.battle;
  $("turns").replaceChildren();
  change("");
  say("");
  $("prompt").focus();
}

async function restore() {
  try {
    const found = await (await request(`/arena/battle?id=${battle}`)).json();
    const last = found.turns[found.turns.length - 1];
    if (["ready", "voted"].includes(found.state)) {
      for (const turn of found.turns) extend(addTurn(turn.prompt), turn);
      if (found.state === "ready") ready();
      else reveal(found);
    } else {
      begin();
      $("prompt").value = last ? last.prompt : "";
      say("The answers were not finished when the page was left: no vote is counted.");
    }
  } catch (error) {
    begin();
    if (error.code !== "unknown_battle") say(error.message, true);
  }
}

function onKey(event) {
  const isText = event.target.matches("textarea, input");
  if ($("login").open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Enter" && event.target === $("prompt") && !event.shiftKey) ask();
  else if (event.key === "Escape" && isText) { event.target.blur(); $("task").focus(); }
  else if (!isText && state === "ready" && KEYS[event.key]) vote(KEYS[event.key]);
  else return;
  event.preventDefault();
}

$("annotator").value = sessionStorage.annotator || "";
$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("stop").onclick = () => stopper.abort();
$("next").onclick = begin;
for (const button of buttons) button.onclick = () => vote(button.dataset.verdict);
document.addEventListener("keydown", onKey);
if (battle) restore();
else change("");
