"use strict";
// Asks /status once a second while the tab is visible, and shows the answer. Server text only ever becomes textContent.

const EVERY_MS = 1000, TIMEOUT_MS = 5000, WINDOW_S = 10, KEPT_S = 120;
const $ = (id) => document.getElementById(id);
const put = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
const show = (id, visible) => { $(id).hidden = !visible; };
const make = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

// Numbers as text

const whole = (n) => Math.round(n).toLocaleString("en-US");
const share = (part, all) => (all > 0 ? `${Math.floor(100 * part / all)} %` : "–");
function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; n >= 1000 && at < units.length - 1; at++) n /= 1000;
  return `${at && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}
function duration(s) {
  if (s === null || s === undefined) return "–";
  if (s < 0.0995) return `${(1000 * s).toFixed(1)} ms`;
  if (s < 0.9995) return `${Math.round(1000 * s)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  const m = Math.floor(Math.round(s) / 60);
  return m < 60 ? `${m} min ${Math.round(s) % 60} s` : `${Math.floor(m / 60)} h ${m % 60} min`;
}
const span = (s) => (s < 10 ? `${Math.floor(s)} s` : duration(s));
const rate = (n) => (n < 10 ? n.toFixed(1) : whole(n));

// The API key: in this tab's session storage, nowhere else

const storedKey = () => { try { return sessionStorage.getItem("loadmaster-key"); } catch { return null; } };
let key = storedKey();
function setKey(value) {
  key = value;
  try {
    if (value === null) sessionStorage.removeItem("loadmaster-key");
    else sessionStorage.setItem("loadmaster-key", value);
  } catch { /* storage is turned off: the key lasts until the page is left */ }
}
const headers = (more) => (key === null ? { ...more } : { ...more, Authorization: `Bearer ${key}` });

// Polling

let samples = [], now = null, timer = null, failure = null, isPolling = false;

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isPolling) return;
  isPolling = true;
  try {
    const answer = await fetch("status", { headers: headers(), cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    accept(await answer.json());
  } catch {
    lost();
  } finally {
    isPolling = false;
  }
  timer = setTimeout(poll, EVERY_MS);
}

function accept(status) {
  if (samples.length && status.uptime_s < samples.at(-1).uptime_s) { samples = []; failure = null; }
  now = status;
  samples.push(status);
  while (samples[0].uptime_s < status.uptime_s - KEPT_S) samples.shift();
  if (status.status === "failed") failure = status.error;
  document.body.classList.remove("stale");
  render(status);
}

function lost() {
  document.body.classList.add("stale");
  enter("lost", failure === null ? "No connection" : "Failed");
  if (failure !== null) notice("The server has failed, and has ended.", failure);
  else if (now !== null && now.status === "shutting down") notice("The server has shut down.");
  else notice("The server does not answer. What is shown is its last state; the page tries again every second.");
  controls();
}

// The sample about `seconds` ago, for differences: the latest that is at least so old, or else the oldest
function before(seconds, kept = samples) {
  const at = kept.at(-1).uptime_s - seconds;
  return kept.findLast((sample) => sample.uptime_s <= at) ?? kept[0];
}

// Drawing

function enter(state, text) {
  document.body.dataset.state = state;
  put("state", text);
}

function notice(title, detail) {
  const text = title === undefined ? "" : detail ? `${title}\n${detail}` : title;
  if ($("notice").dataset.text === text) return; // so that it is read out once
  $("notice").dataset.text = text;
  $("notice").replaceChildren(...(title === undefined ? [] : [make("strong", "", title)]), ...(detail ? [make("pre", "", detail)] : []));
}

const STATES = { ready: ["ready", "Ready"], loading: ["loading", "Loading"], failed: ["failed", "Failed"], "shutting down": ["draining", "Shutting down"] };

function render(status) {
  enter(...(STATES[status.status] ?? ["lost", status.status]));
  if (status.status === "failed") notice("The server has failed, and ends.", status.error);
  else if (status.status === "shutting down") notice("The server is shutting down. Running requests may finish; new ones are refused.");
  else notice();
  show("unlock", status.requires_key && !status.authorized);
  show("forget", status.requires_key && status.authorized);
  if (status.authorized) put("unlock-error", "");
  else if (key !== null) { setKey(null); put("unlock-error", "The server does not accept this key."); }
  show("loading", status.status === "loading");
  if (status.status === "loading") renderLoading(status);
  const model = status.model;
  if (model) {
    put("model", model.names[0]);
    document.title = `${model.names[0]} · Loadmaster`;
    put("version", status.version);
    limitTokens(model.max_model_len);
    put("facts", `up ${span(status.uptime_s)} · ${whole(model.max_model_len)} tokens at most`);
  }
  show("work", Boolean(status.engine) && status.status !== "loading");
  if (status.engine && status.status !== "loading") renderEngine(status);
  controls();
}

function setBar(bar, ...shares) {
  [...bar.children].forEach((part, i) => { part.style.width = `${100 * Math.min(1, Math.max(0, shares[i]))}%`; });
}

function newRow(parts) {
  const row = make("div", "row"), bar = make("div", "bar");
  bar.append(...parts.map((part) => make("span", part)));
  row.append(make("span", "name"), bar, make("span", "value"));
  return row;
}

// One row for each rank, made once: `fill` gets the row's name, bar and value, and the rank
function rows(id, ranks, parts, fill) {
  const box = $(id);
  if (box.children.length !== ranks.length) box.replaceChildren(...ranks.map(() => newRow(parts)));
  ranks.forEach((rank, i) => fill(...box.children[i].children, rank, i));
}

function rankName(rank, all) {
  const slots = all.filter((other) => other.stage === rank.stage).length;
  return slots > 1 ? `Stage ${rank.stage}, rank ${rank.rank}` : `Stage ${rank.stage}`;
}

function renderLoading(status) {
  const { loaded_bytes: done, total_bytes: total, ranks } = status.loading;
  const first = before(WINDOW_S, samples.filter((sample) => sample.loading));
  const elapsed = status.uptime_s - first.uptime_s;
  const perSecond = elapsed > 0 ? (done - first.loading.loaded_bytes) / elapsed : 0;
  const isRead = done >= total;
  put("loading-share", share(done, total));
  put("loading-bytes", `${bytes(done)} of ${bytes(total)}`);
  put("loading-rate", isRead || elapsed <= 0 ? "" : `${bytes(perSecond)}/s`);
  put("loading-left", isRead ? "all weights are read; the stages are being built" : perSecond > 0 ? `${span(Math.ceil((total - done) / perSecond))} left` : "");
  setBar($("loading-bar"), total > 0 ? done / total : 0);
  $("loading-bar").setAttribute("aria-valuenow", String(total > 0 ? Math.floor(100 * done / total) : 0));
  rows("loading-ranks", ranks, ["busy"], (name, bar, value, rank) => {
    name.textContent = rankName(rank, ranks);
    setBar(bar, rank.total_bytes > 0 ? rank.loaded_bytes / rank.total_bytes : 1);
    value.textContent = `${bytes(rank.loaded_bytes)} of ${bytes(rank.total_bytes)}`;
  });
}

const computedPrompt = (sample) => sample.engine.counters.prompt_tokens - sample.engine.counters.cached_tokens;
const output = (sample) => sample.engine.counters.output_tokens;

function perSecond(count, kept, at) {
  const first = kept[Math.max(0, at - 2)], last = kept[at];
  return last.uptime_s > first.uptime_s ? Math.max(0, (count(last) - count(first)) / (last.uptime_s - first.uptime_s)) : 0;
}

function sparkline(id, count, kept) {
  const rates = kept.map((_, i) => perSecond(count, kept, i));
  const top = Math.max(1, ...rates), end = kept.at(-1).uptime_s;
  const points = rates.map((r, i) => `${(100 * (1 - (end - kept[i].uptime_s) / KEPT_S)).toFixed(1)},${(19 - 18 * r / top).toFixed(1)}`);
  $(`${id}-line`).firstElementChild.setAttribute("points", points.join(" "));
  put(`${id}-rate`, rate(rates.at(-1)));
}

function renderEngine(status) {
  const { requests, kv_cache: cache, counters, stages } = status.engine;
  const kept = samples.filter((sample) => sample.engine);
  put("running", whole(requests.running));
  put("running-of", `of ${whole(requests.max_num_seqs)} places`);
  put("waiting", whole(requests.waiting));
  put("waiting-of", `${whole(requests.total)} since the start`);
  sparkline("output", output, kept);
  sparkline("prompt", computedPrompt, kept);
  put("cache", share(cache.used_pages, cache.pages));
  put("cache-of", `${whole(cache.used_pages)} of ${whole(cache.pages)} pages`);
  setBar($("cache-bar"), cache.pages ? cache.used_pages / cache.pages : 0);
  put("hits", share(counters.cached_tokens, counters.prompt_tokens));
  put("hits-of", `${whole(counters.cached_tokens)} of ${whole(counters.prompt_tokens)}`);
  show("drafts", counters.drafted_tokens > 0);
  put("acceptance", share(counters.accepted_tokens, counters.drafted_tokens));
  put("acceptance-of", `${whole(counters.accepted_tokens)} of ${whole(counters.drafted_tokens)}`);

  const first = before(WINDOW_S, kept), elapsed = status.uptime_s - first.uptime_s;
  rows("stages", stages, ["busy", "input"], (name, bar, value, stage, i) => {
    const part = (field) => (elapsed > 0 ? Math.min(1, Math.max(0, (stage[field] - first.engine.stages[i][field]) / elapsed)) : 0);
    const busy = part("busy_s"), input = Math.min(1 - busy, part("input_s"));
    name.textContent = rankName(stage, stages);
    setBar(bar, busy, input);
    value.textContent = `${Math.round(100 * busy)} % busy, ${Math.round(100 * input)} % input`;
  });
  renderRecent(status.recent);
  put("try-kind", status.model.has_chat_template ? "Message" : status.model.has_tokenizer ? "Prompt" : "Prompt, as token ids such as 3, 4, 5");
}

function renderRecent(recent) {
  const text = JSON.stringify(recent);
  if ($("recent").dataset.text === text) return; // so that a selection stays
  $("recent").dataset.text = text;
  show("recent-none", recent.length === 0);
  $("recent").replaceChildren(...recent.map((one) => {
    const row = make("tr"), id = make("td", "mono", one.id);
    id.title = one.id;
    const cells = [whole(one.prompt_tokens), whole(one.output_tokens), duration(one.queue_s), duration(one.first_token_s), duration(one.per_token_s)];
    row.append(id, make("td", one.is_error ? "failed" : "", one.outcome), ...cells.map((cell) => make("td", "", cell)));
    return row;
  }));
}

// The server refuses a request that asks for more tokens than the model's length has room for
function limitTokens(longest) {
  const field = $("max-tokens");
  if (field.max === String(longest)) return;
  field.max = String(longest);
  if (Number(field.value) > longest / 2) field.value = String(Math.max(1, Math.floor(longest / 2)));
}

// A prompt: chat where the model has a template

let running = null; // the controller that stops the answer

function controls() {
  $("send").disabled = running !== null || document.body.dataset.state !== "ready";
  $("stop").disabled = running === null;
}

function question() {
  const { model } = now, text = $("prompt").value, temperature = $("temperature").value;
  const body = { model: model.names[0], max_tokens: Number($("max-tokens").value), stream: true, stream_options: { include_usage: true } };
  if (temperature !== "") body.temperature = Number(temperature);
  if (model.has_chat_template) return ["v1/chat/completions", { ...body, messages: [{ role: "user", content: text }] }];
  if (model.has_tokenizer) return ["v1/completions", { ...body, prompt: text }];
  const ids = text.split(/[\s,]+/).filter(Boolean).map(Number);
  if (!ids.every(Number.isSafeInteger)) throw new Error("This model has no tokenizer: write token ids, such as 3, 4, 5.");
  return ["v1/completions", { ...body, prompt: ids }];
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function append(text, className) {
  const box = $("answer"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  let last = box.lastElementChild;
  if (last === null || last.className !== className) box.append(last = make("span", className, last === null ? "" : "\n\n"));
  last.append(text);
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function measured(text, isError = false) {
  put("measured", text);
  $("measured").className = isError ? "failed" : "";
}

async function send(event) {
  event.preventDefault();
  if (running !== null) return;
  running = new AbortController();
  controls();
  $("answer").replaceChildren();
  show("answer", false);
  measured("Waiting for the first token");
  let firstMs = null, usage = null, reason = null;
  const began = performance.now();
  const summary = (end) => {
    const parts = [firstMs === null ? "no token" : `first token after ${duration(firstMs / 1000)}`];
    if (usage) parts.push(`${whole(usage.prompt_tokens)} prompt and ${whole(usage.completion_tokens)} answer tokens`);
    const decodeS = (performance.now() - began - firstMs) / 1000;
    if (usage && usage.completion_tokens > 1 && firstMs !== null && decodeS > 0) parts.push(`${rate((usage.completion_tokens - 1) / decodeS)} tokens per second`);
    return [...parts, end].join(" · ");
  };
  try {
    const [route, body] = question();
    const answer = await fetch(route, { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body), signal: running.signal });
    if (!answer.ok) throw new Error(await refusal(answer));
    for await (const chunk of events(answer)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const thought = choice.delta?.reasoning ?? choice.delta?.reasoning_content;
      const text = choice.delta?.content || choice.text || (now.model.has_tokenizer ? "" : (choice.token_ids ?? []).map((id) => `${id} `).join(""));
      if (!text && !thought) continue;
      if (firstMs === null) {
        firstMs = performance.now() - began;
        measured(`First token after ${duration(firstMs / 1000)}`);
        show("answer", true);
      }
      if (thought) append(thought, "reasoning");
      if (text) append(text, "answer");
    }
    measured(summary(reason === "length" ? "ended at the most tokens" : "ended"));
  } catch (error) {
    if (error.name === "AbortError") measured(summary("stopped"));
    else measured(error instanceof TypeError ? "The server does not answer." : error.message, true);
  } finally {
    running = null;
    controls();
  }
}

async function refusal(answer) {
  const text = await answer.text();
  try { return JSON.parse(text).error.message; } catch { return `HTTP ${answer.status}`; }
}

$("try").addEventListener("submit", send);
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try").requestSubmit();
});
$("unlock-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("unlock-key").value.trim());
  $("unlock-key").value = "";
  put("unlock-error", "");
  poll();
});
$("forget").addEventListener("click", () => { setKey(null); location.reload(); });
document.addEventListener("visibilitychange", poll);
controls();
poll();
