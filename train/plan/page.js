"use strict";
// The formulas of train/plan/cost.py and allocation.py; a test compares them with these.

function expectInterruptions(numChips, rates) {
  const meanSecs = 3600 * rates.failure_chip_hours / numChips;
  const every = Math.sqrt(2 * rates.save_secs * meanSecs);
  const lost = (rates.restart_secs + (every + rates.save_secs) / 2) / meanSecs;
  const estimate = Math.max(0, (1 - lost) / (1 + rates.save_secs / every));
  return {
    mean_hours: meanSecs / 3600, save_every_secs: every,
    goodput: rates.goodput === null ? estimate : rates.goodput,
  };
}

function makeBill(flops, numChips, rates) {
  const failures = expectInterruptions(numChips, rates);
  const hours = flops / (rates.peak_flops * rates.mfu * 3600);
  const paid = failures.goodput ? hours / failures.goodput : Infinity;
  const kwh = rates.watts === null ? null : paid * rates.watts / 1000 * rates.pue;
  return {
    chip_hours: hours, paid_chip_hours: paid, days: paid / numChips / 24,
    num_interruptions: paid / numChips / failures.mean_hours, usd: paid * rates.usd_per_hour,
    kwh: kwh, co2e_tonnes: kwh === null ? null : kwh * rates.kg_per_kwh / 1000,
    failures: failures,
  };
}

function lawLoss(law, params, tokens) {
  return law.E + law.A / params ** law.alpha + law.B / tokens ** law.beta;
}

// Formats, as those of train/plan/report.py.

function digits(value, count) {
  return String(Number(value.toPrecision(count)));
}

function number(value) {
  if (!Number.isFinite(value)) return "never";
  if (value > 0 && value < 1e-3) return "<0.001";
  return Math.abs(value) >= 999.5 ? Math.round(value).toLocaleString("en-US") : digits(value, 3);
}

function scaled(value, units, last, format) {
  if (!Number.isFinite(value)) return "never";
  const found = units.find(([size]) => value >= size) || last;
  return `${format(value / found[0])}${found[1]}`;
}

const amount = (value) => scaled(value, [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]],
  [1, ""], (x) => digits(x, 4));
const duration = (days) => scaled(days, [[1, " days"], [1 / 24, " hours"], [1 / 1440, " minutes"]],
  [1 / 86400, " seconds"], number);
const energy = (kwh) => scaled(kwh, [[1e6, " GWh"], [1e3, " MWh"]], [1, " kWh"],
  number);
const mass = (tonnes) => scaled(tonnes, [[1, " t"], [1e-3, " kg"]], [1e-6, " g"], number);
const percent = (fraction) => `${digits(100 * fraction, 3)} %`;

function scientific(value) {
  return value.toExponential(2).replace("e+", "e");
}

function share(frac) {
  if (frac >= 1) return `REACHED, ${number(frac)} times`;
  return frac >= 1e-3 ? `not reached, ${percent(frac)} of it` : "far below";
}

// What the page shows, by the id of its element.

function describe(plan, state) {
  const chip = plan.chips[state.chip];
  const rates = {
    ...plan.rates, peak_flops: chip.peak_flops, watts: chip.watts, mfu: state.mfu,
    usd_per_hour: state.usd_per_hour, kg_per_kwh: state.kg_per_kwh,
    failure_chip_hours: state.failure_chip_hours,
  };
  const flops = plan.flops_ratio * 6 * state.params * state.tokens;
  const bill = makeBill(flops, state.num_chips, rates);
  const bytes = plan.bytes_per_param * state.params / state.num_chips;
  const texts = {
    flops: scientific(flops), pf_days: `${number(flops / 8.64e19)} PF-days`,
    chip_hours: number(bill.paid_chip_hours),
    chip_hours_note: `${number(bill.chip_hours)} without interruptions`,
    days: duration(bill.days),
    days_note: `goodput ${percent(bill.failures.goodput)}`,
    interruptions: number(bill.num_interruptions),
    interruptions_note: `one in ${duration(bill.failures.mean_hours / 24)}`,
    usd: `$${number(bill.usd)}`, usd_note: `at $${state.usd_per_hour.toFixed(2)} a chip-hour`,
    energy: bill.kwh === null ? "unknown" : energy(bill.kwh),
    energy_note: bill.kwh === null ? "no power is published" : `${rates.watts} W a chip, `
      + `PUE ${rates.pue}`,
    carbon: bill.kwh === null ? "unknown" : mass(bill.co2e_tonnes),
    carbon_note: `CO2e at ${digits(state.kg_per_kwh, 3)} kg a kWh`,
    ratio: number(state.tokens / state.params),
    ratio_note: `tokens a parameter; predicted loss `
      + `${lawLoss(plan.law, state.params, state.tokens).toFixed(3)} nats`,
    memory: `${number(bytes / 1e9)} GB`,
    memory_note: `of ${chip.memory_gb} GB: parameters, optimizer, gradient, cut evenly`,
    checkpoint: `every ${duration(bill.failures.save_every_secs / 86400)}`,
  };
  plan.thresholds.forEach((one, index) => {
    texts[`threshold_${index}`] = share(flops / one.flops);
  });
  return {flops: flops, texts: texts, is_too_large: bytes > 1e9 * chip.memory_gb};
}

function round(value, count) {
  return Number(value.toPrecision(count));
}

function start(plan) {
  const state = {...plan.start};
  const find = (id) => document.getElementById(id);
  const shown = {
    params: amount, tokens: amount, num_chips: number, mfu: percent,
    usd_per_hour: (x) => `$${x.toFixed(2)}`, failure_chip_hours: number,
  };
  function show() {
    const found = describe(plan, state);
    for (const [id, text] of Object.entries(found.texts)) find(id).textContent = text;
    for (const [name, format] of Object.entries(shown)) {
      find(`${name}_shown`).textContent = format(state[name]);
    }
    find("memory").classList.toggle("too-large", found.is_too_large);
    const [low, high, left, right] = plan.ruler;
    const part = (Math.log10(found.flops) - low) / (high - low);
    const x = left + Math.min(1, Math.max(0, part)) * (right - left);
    find("marker").setAttribute("transform", `translate(${x} 0)`);
  }
  function place(name) {
    const slider = find(name);
    slider.value = slider.dataset.scale === "log" ? Math.log10(state[name]) : state[name];
  }
  for (const name of Object.keys(shown)) {
    find(name).addEventListener("input", (event) => {
      const raw = Number(event.target.value);
      const value = round(event.target.dataset.scale === "log" ? 10 ** raw : raw, 3);
      state[name] = name === "num_chips" ? Math.max(1, Math.round(value)) : value;
      show();
    });
  }
  find("chip").addEventListener("change", (event) => {
    state.chip = event.target.value;
    state.usd_per_hour = plan.chips[state.chip].usd_per_hour;
    place("usd_per_hour");
    show();
  });
  find("grid").addEventListener("change", (event) => {
    state.kg_per_kwh = Number(event.target.value);
    show();
  });
}

if (typeof document !== "undefined") start(PLAN);
