// How texts of models and people become elements: as text nodes only, nothing here parses markup.

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Control characters become pictures, as in core/page/markup.py; those that reorder text, names.
export const visible = (text) => text.toWellFormed()
  .replace(/[\0-\x08\x0b-\x1f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt()))
  .replace(/\x7f/g, "\u2421").replace(/[\x80-\x9f]/g, "\ufffd")
  .replace(/[\u202a-\u202e\u2066-\u2069]/g, (one) =>
    `\u27e8U+${one.charCodeAt().toString(16).toUpperCase()}\u27e9`);

// Both writers return a function that writes what is new of an answer: {content, tokens}.
export function writeText(box, answer) {
  let shown = 0;
  return () => {
    box.append(visible(answer.content.slice(shown)));
    shown = answer.content.length;
  };
}

// Writes token by token. A character that several tokens share is theirs together; a token without
// text, such as the one that ends the answer, is shown by its name.
export function writeTokens(box, answer) {
  const decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  let numRead = 0, shown = 0, text = "", tokens = [];
  const put = (part) => {
    const span = make("span", {tokens, className: part ? "token" : "token silent", tabIndex: -1,
      textContent: visible(part || tokens.map(({name}) => name).join(""))});
    span.style.setProperty("--chance", tokens.reduce((all, {logp}) => all * chanceOf(logp), 1));
    if (!box.firstChild) span.tabIndex = 0;     // from which arrow keys lead to the others
    box.append(span);
    [shown, text, tokens] = [shown + part.length, "", []];
  };
  return (isEnd) => {
    while (text || numRead < answer.tokens.length) {
      const rest = answer.content.slice(shown);
      if (!text) {
        tokens.push(answer.tokens[numRead++]);
        text = decoder.decode(bytesOf(tokens.at(-1).name), {stream: true});
      } else if (rest.startsWith(text)) put(text);
      else if (!text.startsWith(rest)) put("");
      else if (isEnd) put(rest);      // a stop text cut it
      else break;                     // its text is not all there yet
    }
    if (isEnd && (tokens.length || shown < answer.content.length)) put(answer.content.slice(shown));
  };
}

const chanceOf = (logp) => logp === null ? 0 : Math.exp(logp);    // JSON has no -Infinity

function bytesOf(name) {        // of a part of a character the name lists the bytes
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return new TextEncoder().encode(name);
  return Uint8Array.from(name.split("\\x").slice(1), (byte) => parseInt(byte, 16));
}

// Shows the probabilities of an element's tokens and of their likeliest alternatives beside it.
export function showTip(tip, span, lowest) {
  tip.replaceChildren(...span.tokens.map(({name, logp, top}) => {
    const rows = top.some(([other]) => other === name) ? top : [...top, [name, logp]];
    return make("table", {}, ...rows.map(([other, its]) =>
      make("tr", {className: other === name ? "own" : ""}, make("td", {textContent: quote(other)}),
        make("td", {textContent: `${(100 * chanceOf(its)).toFixed(1)} %`}))));
  }));
  tip.hidden = false;
  const {left, top, bottom} = span.getClientRects()[0];
  const y = bottom + tip.offsetHeight < lowest ? bottom : top - tip.offsetHeight;
  const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(left, most))}px`;
  tip.style.top = `${scrollY + y}px`;
  span.setAttribute("aria-describedby", tip.id);
}

const quote = (name) => visible(name.slice(0, 60)).replace(/^bytes:/, "").replaceAll(" ", "␣")
  .replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(no text)";
