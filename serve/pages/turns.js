// The turns of a conversation as elements. The page says what happens in them: `act.edit`,
// `act.retry` and `act.turnTo` are called with the id of a node.
import {childrenOf} from "/conversations.js";
import {make, visible, writeText, writeTokens} from "/text.js";

const ENDS = {length: "ended at its limit", stopped: "stopped by you"};
const makeButton = (textContent, properties) => make("button", {type: "button", textContent,
  ...properties});

// The element of a turn, and the function that writes what is new of its text.
export function makeTurn(chat, id, act, {isWriting, isTinted}) {
  const node = chat.nodes[id], isOwn = node.role === "user";
  const text = make("div", {className: "text", dir: "auto", ariaBusy: isWriting});
  const foot = make("p", {className: "foot"}, ...makeVersions(chat, id, act));
  if (isWriting) foot.append("writing …");
  else if (isOwn) foot.append(makeButton("Edit", {onclick: () => act.edit(id)}));
  else if (node.how) {
    foot.append(makeButton("Retry", {onclick: () => act.retry(node.parent)}), describe(node));
  }
  const article = make("article", {id, className: `turn ${node.role}`, tabIndex: -1},
    make("h2", {textContent: isOwn ? "You" : visible(node.how?.model ?? node.role)}), text, foot);
  const write = (isTinted && node.how?.logprobs ? writeTokens : writeText)(text, node);
  write(!isWriting);
  return {article, write};
}

function describe({usage, secs, firstSecs, how, finish, fault}) {
  return [usage && `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
    firstSecs && `first after ${firstSecs.toFixed(2)} s`,
    usage && `${(usage.completion_tokens / secs).toFixed(1)} tokens/s`, `seed ${how.seed}`,
    finish === "cut" ? `cut: ${fault ?? "the page was left"}` : ENDS[finish]]
    .filter(Boolean).join(" · ");
}

function makeVersions(chat, id, act) {
  const all = childrenOf(chat, chat.nodes[id].parent), place = all.indexOf(id);
  const arrow = (step, text, ariaLabel) => makeButton(text, {ariaLabel,
    disabled: !all[place + step], onclick: () => act.turnTo(all[place + step], step)});
  return all.length < 2 ? [] : [make("span", {className: "versions"},
    arrow(-1, "‹", "Version before"), `${place + 1}/${all.length}`,
    arrow(1, "›", "Version after"))];
}

// A form in which a turn is written anew.
export function makeEdit(content, send, cancel) {
  const field = make("textarea", {value: content, dir: "auto", ariaLabel: "Your message"});
  const form = make("form", {className: "edit"}, field, make("p", {className: "row"},
    make("button", {className: "main", textContent: "Send"}),
    makeButton("Cancel", {name: "cancel", onclick: cancel})));
  onSubmit(form, () => send(field.value));
  return form;
}

// Calls back when a form is sent, by its button or by Enter.
export function onSubmit(form, act) {
  form.onsubmit = (event) => { event.preventDefault(); act(); };
  form.onkeydown = (event) => {
    if (!event.target.matches("textarea") || event.key !== "Enter" || event.shiftKey
        || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  };
}

// An entry of the list of conversations.
export function makeEntry(title, isCurrent, open, forget) {
  const entry = make("li", {}, makeButton(title, {className: "open", onclick: open}),
    makeButton("×", {ariaLabel: `Forget ${title}`, onclick: forget}));
  entry.firstChild.setAttribute("aria-current", isCurrent);
  return entry;
}
