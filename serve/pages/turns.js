// The turns of a conversation as elements, and the probabilities of tokens. The page says what
// happens in a turn: `act.edit`, `act.retry` and `act.turnTo` are called with the id of a node.
import {childrenOf} from "/conversations.js";
import {make, makeText, visible} from "/page.js";

const ENDS = {stop: "", length: "ended at its limit"};
export const makeButton = (textContent, onclick, more) => make("button", {type: "button",
  textContent, onclick, ...more});

// The element of a turn, and the function that writes what is new of it.
export function makeTurn(chat, id, act, isWriting) {
  const node = chat.nodes[id], isOwn = node.role === "user";
  const text = Object.assign(makeText(""), {ariaBusy: isWriting});
  const about = make("span", {className: isWriting || node.content ? "" : "fault"});
  const foot = make("p", {className: "foot"});
  foot.append(...makeVersions(chat, id, act));
  if (isOwn) foot.append(makeButton("Edit", () => act.edit(id)));
  else if (!isWriting) foot.append(makeButton("Retry", () => act.retry(node.parent)));
  foot.append(about);
  const article = make("article", {id, className: `turn ${node.role}`, tabIndex: -1},
    make("h2", {textContent: isOwn ? "You" : visible(node.how.model)}), text, foot);
  const writeMore = (node.spans ? writeSpans : writeText)(text, node);
  const write = () => {
    writeMore();
    if (!isOwn) about.textContent = describe(node, isWriting);
  };
  write();
  return {article, write};
}

function describe({usage, secs, firstSecs, how, finish}, isWriting) {
  return [usage && `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
    firstSecs && `first after ${firstSecs.toFixed(2)} s`,
    usage && `${(usage.completion_tokens / secs).toFixed(1)} tokens/s`, `seed ${how.seed}`,
    isWriting ? "writing …" : ENDS[finish] ?? finish].filter(Boolean).join(" · ");
}

function makeVersions(chat, id, act) {
  const all = childrenOf(chat, chat.nodes[id].parent), place = all.indexOf(id);
  const arrow = (step, text, ariaLabel) => makeButton(text, () => act.turnTo(all[place + step],
    step), {ariaLabel, disabled: !all[place + step]});
  return all.length < 2 ? [] : [make("span", {className: "versions"},
    arrow(-1, "‹", "Version before"), `${place + 1}/${all.length}`,
    arrow(1, "›", "Version after"))];
}

// Both writers return a function that writes what is new.
function writeText(box, answer) {
  let shown = 0;
  return () => {
    box.append(visible(answer.content.slice(shown)));
    shown = answer.content.length;
  };
}

function writeSpans(box, {spans}) {
  return () => {
    box.append(...spans.slice(box.children.length).map(makeSpan));
    if (box.firstChild) box.firstChild.tabIndex = 0;    // from which arrow keys lead on
  };
}

function makeSpan({text, tokens}) {     // one without text is shown by the names of its tokens
  const span = make("span", {tokens, className: text ? "token" : "token silent", tabIndex: -1,
    textContent: visible(text || tokens.map(({name}) => name).join(""))});
  span.style.setProperty("--chance", tokens.reduce((all, {logp}) => all * chanceOf(logp), 1));
  return span;
}

const chanceOf = (logp) => logp === null ? 0 : Math.exp(logp);    // JSON has no -Infinity

// Shows the probabilities of an element's tokens and of their likeliest alternatives beside it.
export function showTip(tip, span, lowest) {
  tip.replaceChildren(...span.tokens.map(({name, logp, top}) => {
    const rows = top.some(([other]) => other === name) ? top : [...top, [name, logp]];
    return make("table", {}, ...rows.map(([other, its]) =>
      make("tr", {className: other === name ? "own" : ""}, make("td", {textContent: quote(other)}),
        make("td", {textContent: `${(100 * chanceOf(its)).toFixed(1)} %`}))));
  }));
  tip.hidden = !span.tokens.length;
  const {left, top, bottom} = span.getClientRects()[0];
  const y = bottom + tip.offsetHeight < lowest ? bottom : top - tip.offsetHeight;
  const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(left, most))}px`;
  tip.style.top = `${scrollY + y}px`;
  span.setAttribute("aria-describedby", tip.id);
}

const quote = (name) => visible(name.slice(0, 60)).replace(/^bytes:/, "").replaceAll(" ", "␣")
  .replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(no text)";
