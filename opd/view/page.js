// Asks for view.json every two seconds and shows it. Everything else on the page is in page.html.
"use strict";

const PERIOD = 2000; // milliseconds between two questions
const PATIENCE = 5000; // milliseconds that an answer may take
const WIDTH = 600, HEIGHT = 220, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 24; // of a chart, in its own units

const element = (id) => document.getElementById(id);

// Text is only set where it differs: a screen reader would read it again.
function put(id, text, look = "") {
  const found = element(id);
  if (found.textContent !== text) found.textContent = text;
  if (found.className !== look) found.className = look;
}

function digits(value) {
  if (value === null || value === undefined) return "?";
  return Math.abs(value) < 999.5 ? String(Number(value.toPrecision(3))) : value.toFixed(0);
}

const milliseconds = (seconds) => (seconds === null ? "?" : digits(1000 * seconds) + " ms");
const percent = (share) => (share === null ? "?" : (100 * share).toFixed(1) + " %");
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();

function make(name, text, attributes = {}, space = "http://www.w3.org/1999/xhtml") {
  const made = document.createElementNS(space, name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const drawn = (name, attributes, text = "") => make(name, text, attributes, "http://www.w3.org/2000/svg");

function row(cells) {
  const made = make("tr", "");
  made.append(make("th", cells[0], { scope: "row" }), ...cells.slice(1).map((cell) => make("td", cell)));
  return made;
}

// Lists are only replaced where they differ, for screen readers and for whoever selects text in them.
function replaceIn(id, children) {
  const found = element(id);
  const before = Array.from(found.children, (child) => child.outerHTML).join();
  if (before !== children.map((child) => child.outerHTML).join()) found.replaceChildren(...children);
}

// ------------------------------------------------------------------------------------------------- charts

// Largest value of an axis, and its steps: 1, 2 or 5 times a power of ten.
function axis(largest) {
  const rough = Math.max(largest, 1e-6) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
  return { step, end: step * Math.ceil(Math.max(largest, 1e-6) / step) };
}

// Steps, one an interval. The line is broken where a value is unknown, and where nothing was measured during a change.
function steps(begins, ends, values, x, y) {
  let path = "", reached = -Infinity; // end of what is drawn
  values.forEach((value, place) => {
    if (value === null) return;
    const joined = begins[place] - reached < 1; // second
    path += `${joined ? "L" : "M"}${x(begins[place]).toFixed(1)} ${y(value).toFixed(1)}H${x(ends[place]).toFixed(1)}`;
    reached = ends[place];
  });
  return path;
}

// Draws named series over the intervals; `words` describes the chart to those who do not see it.
function chart(id, begins, ends, series, words) {
  const svg = element(id);
  svg.setAttribute("aria-label", words);
  const { step, end } = axis(Math.max(...Object.values(series).flat().filter((value) => value !== null), 0));
  const first = begins[0], last = ends[ends.length - 1];
  const x = (time) => LEFT + ((time - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / end) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (let mark = 0; mark <= end * 1.001; mark += step) {
    parts.push(drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }));
    parts.push(drawn("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, digits(mark)));
  }
  parts.push(drawn("text", { x: LEFT, y: HEIGHT - 6 }, clock(first)));
  parts.push(drawn("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, clock(last)));
  for (const [name, values] of Object.entries(series).reverse()) {
    parts.push(drawn("path", { class: name, d: steps(begins, ends, values, x, y) }));
  }
  svg.replaceChildren(...parts);
}

function charts(course, level, spoken) {
  if (!course.end.length) return;
  const begins = course.end.map((end, place) => end - course.seconds[place]);
  const { load, forecast, capacity } = course;
  chart("load-chart", begins, course.end, { load, forecast, capacity }, `Load, forecast and capacity. ${spoken.load}`);
  const inMilliseconds = (values) => values.map((value) => (value === null ? null : 1000 * value));
  const mean = inMilliseconds(course.latency_mean), p99 = inMilliseconds(course.latency_p99);
  const objective = level ? course.end.map(() => 1000 * level.seconds) : [];
  chart("latency-chart", begins, course.end, { mean, p99, objective }, `Latency and objective. ${spoken.latency}`);
}

// -------------------------------------------------------------------------------------------------- parts

function showAbout(view) {
  const title = view.interval && view.level ? `${view.pipeline}: ${percent(view.interval.within)} in time` : view.pipeline;
  if (document.title !== title) document.title = title;
  put("pipeline", view.pipeline);
  put("state", view.state || "controlled", view.state.startsWith("failing") ? "bad" : "");
  const emulated = view.emulated ? "replicas are emulated: they take the profiled times and no cores" : "";
  const agent = view.agent ? `agent ${view.agent}` : "";
  const address = view.address ? `requests to ${view.address}` : "";
  put("about", [address, agent, emulated, view.assumed].filter(Boolean).join("; "));
}

function showInterval(view, now) {
  const { interval, level } = view;
  put("objective", level ? `Within ${digits(level.seconds)} s, objective ${digits(level.percentile)} %` : "Objective");
  put("age", interval ? `ended ${Math.max(0, Math.round(now - interval.end))} s ago` : "none yet");
  const known = interval || { load: null, forecast: null, capacity: null, latency_mean: null, latency_p99: null,
    within: null, cores: null, failed: null };
  const failed = known.failed > 0 ? `; ${digits(known.failed)} without answer` : "";
  put("load", `${digits(known.load)} requests/s${failed}`, failed ? "bad" : "");
  put("forecast", `${digits(known.forecast)} requests/s`);
  put("capacity", `${digits(known.capacity)} requests/s`);
  put("latency_mean", milliseconds(known.latency_mean));
  put("latency_p99", milliseconds(known.latency_p99));
  const met = level && known.within !== null ? 100 * known.within >= level.percentile : null;
  put("within", percent(known.within) + (met === null ? "" : met ? ", met" : ", missed"),
    met === null ? "" : met ? "good" : "bad");
  const waiting = view.stages.map((stage) => stage.waiting);
  put("waiting", waiting.length && !waiting.includes(null) ? digits(waiting.reduce((sum, each) => sum + each)) : "?");
  put("cores", `${digits(known.cores)} of ${digits(view.device_cores)}`);
}

function showDecision(decision) {
  if (!decision) return replaceIn("decision", [make("p", "none yet")]);
  const basis = decision.basis ? `, from ${decision.basis}` : "";
  const took = decision.outcome === "idle" ? "" : ` after ${digits(1000 * decision.seconds)} ms`;
  const texts = [`${decision.outcome}${took}${basis}`, ...decision.changes];
  const remarks = decision.remarks.map((text) => make("p", text, { class: decision.outcome === "refused" ? "bad" : "" }));
  replaceIn("decision", [...texts.map((text) => make("p", text)), ...remarks]);
}

// What a screen reader says by itself: changes, refusals, and whether the objective is met. Nothing in quiet intervals.
function announce(decision) {
  const said = decision ? [...decision.changes, ...decision.remarks] : [];
  const objective = element("within").className;
  if (objective) said.push(objective === "good" ? "objective met" : "objective missed");
  put("news", said.join("; "), "spoken");
}

function showStages(stages) {
  replaceIn("stage-rows", stages.map((stage) => {
    const factor = stage.service_factor;
    const spread = factor === null ? "" : ` ± ${(factor * stage.service_deviation).toFixed(2)}`;
    const calibrated = factor === null ? "?" : factor.toFixed(2) + spread;
    return row([stage.task, stage.variant, digits(stage.replicas), digits(stage.batch_size), digits(stage.waiting),
      calibrated]);
  }));
}

function showCourse(course) {
  if (!element("course").open) return;
  const rows = course.end.map((end, place) => row([clock(end), digits(course.load[place]),
    digits(course.forecast[place]), digits(course.capacity[place]), milliseconds(course.latency_mean[place]),
    milliseconds(course.latency_p99[place]), percent(course.within[place]), digits(course.cores[place])]));
  replaceIn("course-rows", rows.reverse());
}

function show(known) {
  const { view, course, warnings, now } = known;
  if (!view) return;
  showAbout(view);
  showInterval(view, now);
  showDecision(view.decision);
  announce(view.decision);
  showStages(view.stages);
  const text = (id) => element(id).textContent;
  charts(course, view.level, {
    load: `Now ${text("load")}, forecast maximum ${text("forecast")}, capacity ${text("capacity")}.`,
    latency: `Now mean ${text("latency_mean")}, p99 ${text("latency_p99")}; ${text("objective")}: ${text("within")}.`,
  });
  showCourse(course);
  const lines = warnings.map((each) => make("li", `${clock(each.time)} ${each.text}`));
  replaceIn("warnings", lines.length ? lines.reverse() : [make("li", "none")]);
}

// ------------------------------------------------------------------------------------------------- asking

let known = null;

function lost(error) {
  const since = known ? ` since ${clock(known.now)}; the figures are from then` : "";
  put("lost", `opd does not answer${since} (${error.message})`);
  element("lost").hidden = false;
}

async function asked() {
  const answer = await fetch("view.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return { ...(await answer.json()), now: Date.parse(answer.headers.get("Date")) / 1000 };
}

async function ask() {
  try {
    known = await asked();
    element("lost").hidden = true;
  } catch (error) {
    lost(error);
  }
  setTimeout(ask, PERIOD); // before showing, which may fail on figures it does not know
  if (known) show(known);
}

element("course").addEventListener("toggle", () => known && showCourse(known.course));
ask();
