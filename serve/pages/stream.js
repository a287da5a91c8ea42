// Asks the server, and reads the answers as they come.

const FIELDS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens",
  "seed"];
const NUM_TOP = 5;      // alternatives to each token

// Fetches; every failure is an error whose message is a line for the reader.
export async function ask(path, key, body, signal) {
  const headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = `Bearer ${key}`;
  const reply = await fetch(path, {headers, signal, method: body ? "POST" : "GET",
    body: body && JSON.stringify(body)}).catch(() => {
    throw new Error("The server does not answer. Nothing is lost: try again.");
  });
  if (reply.ok) return reply;
  const {error} = await reply.json().catch(() => ({}));
  const why = error?.message ?? `status ${reply.status}`;
  const lines = {401: key ? "This key is not accepted." : "This server needs an API key.",
    429: `The server is busy: try again in ${reply.headers.get("Retry-After") ?? 1} s.`};
  throw Object.assign(new Error(lines[reply.status] ?? (error?.code === "context_length_exceeded"
    ? `Too long: ${why}. Edit an earlier message, or ask for a shorter answer.`
    : `The server refuses: ${why}.`)), {status: reply.status});
}

// The path and the body of a request for an answer to turns; settings are the texts of the form.
export function makeRequest(settings, turns, isChat) {
  const body = {model: settings.model, stream: true, stream_options: {include_usage: true}};
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
  ...turns.map(({role, content}) => ({role, content}))];

// Draws an answer, and calls back after each change. However it ends, the answer says how: returns
// the error, or null. What came before it is kept.
export async function draw(answer, [path, body], key, signal, onChange) {
  const began = performance.now(), countSecs = () => (performance.now() - began) / 1000;
  let fault = null;
  try {
    for await (const event of readEvents((await ask(path, key, body, signal)).body)) {
      add(answer, event);
      if (answer.content) answer.firstSecs ??= countSecs();
      onChange();
    }
  } catch (error) {
    fault = error;
    Object.assign(answer, signal.aborted ? {finish: "stopped"}
      : {finish: "cut", fault: error.message});
  }
  answer.secs = countSecs();
  return fault;
}

async function* readEvents(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  for (let text = ""; ;) {
    const {value, done} = await reader.read();
    const events = (text + decoder.decode(value, {stream: !done})).split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice("data: ".length));
    }
    if (done) throw new Error("the connection was lost");
  }
}

function add(answer, {error, choices, usage, system_fingerprint: fingerprint}) {
  if (error) throw new Error(error.message);
  Object.assign(answer, {fingerprint}, usage && {usage});
  for (const {delta, text, logprobs, finish_reason: finish} of choices) {
    answer.content += delta?.content ?? text ?? "";
    answer.tokens.push(...listTokens(logprobs));
    if (finish) answer.finish = finish;
  }
}

function listTokens(logprobs) {     // of both endpoints, in one form
  if (logprobs?.content) {
    return logprobs.content.map(({token, logprob, top_logprobs: top}) => ({name: token,
      logp: logprob, top: top.map((one) => [one.token, one.logprob])}));
  }
  return (logprobs?.tokens ?? []).map((name, place) => ({name,
    logp: logprobs.token_logprobs[place], top: Object.entries(logprobs.top_logprobs[place])}));
}
