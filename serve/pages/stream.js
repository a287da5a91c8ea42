// Requests for answers, and the answers as they come.
import {ask, readEvents} from "/page.js";

const FIELDS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens",
  "seed"];
const NUM_TOP = 5;      // alternatives to each token

// The path and the body of a request for an answer to turns; settings are the texts of the form.
export function makeRequest(settings, turns, isChat) {
  const body = {model: settings.model, stream: true,
    stream_options: {include_usage: true, continuous_usage_stats: true}};
  for (const name of FIELDS) if (settings[name] !== "") body[name] = Number(settings[name]);
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop.map((text) => text.replaceAll("\\n", "\n"));
  if (isChat) body.messages = toMessages(settings.system, turns);
  else body.prompt = turns.map(({content}) => content).join("");
  if (settings.logprobs && isChat) Object.assign(body, {logprobs: true, top_logprobs: NUM_TOP});
  else if (settings.logprobs) body.logprobs = NUM_TOP;
  return [isChat ? "/v1/chat/completions" : "/v1/completions", body];
}

export const toMessages = (system, turns) => [
  ...(system ? [{role: "system", content: system}] : []),
  ...turns.filter(({content}) => content).map(({role, content}) => ({role, content}))];

// Draws an answer, and calls back after each change. However it ends, the answer says how, and what
// came before is kept.
export async function draw(answer, [path, body], signal, onChange) {
  const began = performance.now();
  try {
    for await (const event of readEvents(await ask(path, body, signal))) {
      add(answer, event);
      answer.secs = (performance.now() - began) / 1000;
      if (answer.content) answer.firstSecs ??= answer.secs;
      onChange();
    }
  } catch ({message}) {
    const why = answer.content ? `cut: ${message}` : message;
    answer.finish = signal.aborted ? "stopped by you" : why;
  }
}

function add(answer, {choices, usage, system_fingerprint: fingerprint}) {
  Object.assign(answer, {fingerprint}, usage && {usage});
  for (const {delta, text = delta.content ?? "", logprobs, finish_reason: finish} of choices) {
    answer.content += text;
    if (answer.spans) answer.spans.push(...makeSpans(text, listTokens(logprobs)));
    if (finish) answer.finish = finish;
  }
}

// The text of each token, or of all, where they share a character or a stop text cut the last.
function makeSpans(text, tokens) {
  const isEach = tokens.map(({name}) => name).join("") === text;
  return isEach ? tokens.map((one) => ({text: one.name, tokens: [one]})) : [{text, tokens}];
}

function listTokens(logprobs) {     // of both endpoints, in one form
  if (logprobs?.content) {
    return logprobs.content.map(({token, logprob, top_logprobs: top}) => ({name: token,
      logp: logprob, top: top.map((one) => [one.token, one.logprob])}));
  }
  return (logprobs?.tokens ?? []).map((name, place) => ({name,
    logp: logprobs.token_logprobs[place], top: Object.entries(logprobs.top_logprobs[place])}));
}
