// The dashboard: reads the API as any client does. Everything from outside becomes text, never markup.
"use strict";

const byId = (id) => document.getElementById(id);
const LOOK_MS = 2000;
let key = sessionStorage.getItem("tunery-key") || "";

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (!response.ok && body.error) throw Object.assign(new Error(body.error.message), { status: response.status });
  return body;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (className) made.className = className;
  return made;
}

function cell(...content) {
  const made = element("td");
  made.append(...content.filter((part) => part !== null && part !== undefined).map((part) => (part instanceof Node ? part : String(part))));
  return made;
}

function fill(id, rows) {
  const table = byId(id);
  table.tBodies[0].replaceChildren(...rows);
  table.hidden = rows.length === 0;
  table.parentElement.querySelector(".empty").hidden = rows.length > 0;
}

const number = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : "");

function duration(seconds) {
  if (typeof seconds !== "number") return "";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

// To the end of the job; where that cannot be known, to its last step.
function timeLeft(progress) {
  if (typeof progress.eta_seconds === "number") return duration(progress.eta_seconds);
  const steps = duration(progress.training_seconds_left);
  return steps && `${steps} to the last step`;
}

function mainMetric(test) {
  if (test.metric in test.after) return test.metric;
  return ["accuracy", "bleu", "loss"].find((known) => known in test.after) || Object.keys(test.after)[0];
}

function gain(metrics) {
  const test = metrics && metrics.test;
  if (!test || !test.after) return "";
  const name = mainMetric(test);
  return `${name} ${number(test.before && test.before[name])} → ${number(test.after[name])}`;
}

// Whether it helped, in a word that says so by its colour, and the sentence that explains it.
function verdict(metrics) {
  const test = metrics && metrics.test;
  if (!test || test.helped === undefined) return [];
  const words = { true: "helped", false: "did not help", unclear: "unclear" };
  const word = element("span", words[test.helped], { true: "succeeded", false: "failed" }[test.helped]);
  word.title = test.verdict;
  return [word, element("small", test.verdict)];
}

// What the adapter itself adds: the gain over "before" is partly that of the fitted head.
function gainOverHead(metrics) {
  const test = metrics && metrics.test;
  if (!test || !test.after || !test.frozen_head) return "";
  const name = mainMetric(test);
  const added = test.against_frozen_head || {};
  const interval = added.confidence_interval && added.confidence_interval[name];
  const within = interval ? ` (95 %: ${number(interval[0])} … ${number(interval[1])})` : "";
  return `frozen head ${number(test.frozen_head[name])}, adapter adds ${number(added.delta && added.delta[name])}${within}`;
}

function jobRow(job) {
  const row = element("tr");
  const progress = job.progress || {};
  const bar = element("progress");
  bar.max = 100;
  bar.value = progress.percent || 0;
  const ended = ["succeeded", "failed", "cancelled"].includes(job.status);
  const status = element("span", job.status, job.status);
  const detail = element("small", job.error ? job.error.message : job.phase || job.reason || (job.queue_position === null ? "" : `${job.queue_position} before it`));
  const cancel = element("button", "Cancel");
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    await call(`/jobs/${encodeURIComponent(job.id)}:cancel`, { method: "POST" }).catch((error) => alert(error.message));
    look();
  });
  row.append(
    cell(job.adapter_name, element("small", job.id)),
    cell(job.base_model),
    cell(status, detail),
    cell(job.progress ? bar : "", element("small", job.progress ? `step ${progress.step} of ${progress.total_steps}` : "")),
    cell(number(progress.loss)),
    cell(ended ? "" : timeLeft(progress)),
    cell(gain(job.metrics), " ", ...verdict(job.metrics), element("small", gainOverHead(job.metrics))),
    cell(ended ? "" : cancel),
  );
  return row;
}

function adapterRow(adapter) {
  const row = element("tr");
  row.append(cell(adapter.reference, element("small", adapter.id)), cell(adapter.base_model), cell(adapter.task), cell(adapter.parameters.toLocaleString()), cell(new Date(adapter.created_at).toLocaleString()));
  return row;
}

function datasetRow(dataset) {
  const row = element("tr");
  const warnings = ((dataset.report && dataset.report.warnings) || []).map((warning) => warning.message).join("; ");
  row.append(cell(dataset.name, element("small", dataset.id)), cell(dataset.task || ""), cell(element("span", dataset.status, dataset.status)), cell(dataset.rows === null ? "" : dataset.rows.toLocaleString()), cell(warnings));
  return row;
}

async function lookAtParts() {
  try {
    const ready = await call("/readyz");
    byId("checks").replaceChildren(...Object.entries(ready.checks).map(([name, check]) => {
      const item = element("li", name, check.ok ? "" : "down");
      if (check.reason) item.title = check.reason;
      return item;
    }));
  } catch {
    byId("checks").replaceChildren(element("li", "service", "down"));
  }
}

async function look() {
  try {
    const [jobs, adapters, datasets, models] = await Promise.all([call("/jobs?limit=20"), call("/adapters?limit=20"), call("/datasets?limit=20"), call("/models")]);
    byId("access").hidden = true;
    fill("jobs", jobs.data.map(jobRow));
    fill("adapters", adapters.data.map(adapterRow));
    fill("datasets", datasets.data.map(datasetRow));
    const names = [...adapters.data.map((adapter) => adapter.reference), ...models.data.map((model) => model.id)];
    byId("names").replaceChildren(...names.map((name) => Object.assign(element("option"), { value: name })));
    look.bases = models.data.map((model) => model.id);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      byId("access").hidden = false;
      byId("refusal").textContent = key ? error.message : "The key stands where the service was started, and in its data folder.";
    }
  }
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  sessionStorage.setItem("tunery-key", key);
  look();
});

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const who = byId("who").value.trim();
  const target = (look.bases || []).includes(who) ? { base_model: who } : { adapter_id: who };
  byId("answer").textContent = "…";
  try {
    const answer = await call("/predict", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...target, inputs: [byId("text").value] }),
    });
    byId("answer").textContent = JSON.stringify(answer.outputs[0], null, 1).slice(0, 4000);
  } catch (error) {
    byId("answer").textContent = error.message;
  }
});

function again() {
  if (!document.hidden) {
    lookAtParts();
    if (byId("access").hidden) look();
  }
  setTimeout(again, LOOK_MS);
}

look();
again();
