// The form of settings, whose fields have the names of the API's, and the models to choose from.
import {ask} from "/stream.js";

const form = document.getElementById("settings");
export const fields = form.elements;
let models = [];

export const readForm = () => Object.fromEntries([...fields].map((one) =>
  [one.name, one.type === "checkbox" ? one.checked : one.value]));

export function writeForm(settings) {
  for (const one of fields) {
    if (one.type === "checkbox") one.checked = settings[one.name] === true;
    else one.value = settings[one.name] ?? "";
  }
  if (!fields.model.value) fields.model.selectedIndex = 0;      // it is not served any more
}

// Asks for the models that write text; throws what is to be said if there is none.
export async function fetchModels(key) {
  const {data} = await (await ask("/v1/models", key)).json();
  models = data.filter(({task}) => task !== "embedding");
  fields.model.replaceChildren(...models.map(({id, task}) => Object.assign(
    document.createElement("option"), {value: id,
      textContent: task === "chat" ? id : `${id} (continues text)`})));
}

// The chosen model: {id, task, context_tokens}, or undefined.
export const chosenModel = () => models.find(({id}) => id === fields.model.value);

// A line about the chosen model.
export function describeModel() {
  const {id, task, context_tokens: limit} = chosenModel() ?? {};
  const tokens = `${limit?.toLocaleString("en")} tokens`;
  fields.max_tokens.placeholder = task === "completion" ? "16" : "what fits";
  if (!id) return "";
  if (task === "chat") return `${id} reads and writes up to ${tokens}.`;
  return `${id} is a base model: it goes on with your text, up to ${tokens}, without turns or a ` +
    "system prompt.";
}
