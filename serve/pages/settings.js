// The form of settings, whose fields have the names of the API's, and the models to choose from.
import {$, ask, make} from "/page.js";

const fields = $("settings").elements;
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

// Asks for the models that write text; throws what is to be said if there is no answer.
export async function fetchModels() {
  const {data} = await (await ask("/v1/models")).json();
  models = data.filter(({task}) => task !== "embedding");
  fields.model.replaceChildren(...models.map(({id, task, context_tokens: limit}) => make("option",
    {value: id, textContent: `${id} (${task === "chat" ? "" : "base, "}${limit} tokens)`})));
}

// The chosen model: {id, task, context_tokens}, or undefined.
export const chosenModel = () => models.find(({id}) => id === fields.model.value);
