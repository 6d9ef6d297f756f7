"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
/* What a name may not have, so that the file of answers can be added; two joiners belong to names in some scripts. */
const INVISIBLE = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}]/gu;
let rater = "", answers = {}, order = [], shown = 0, isKept = true;

/* A number from 0 to 2^32 - 1 that follows from a text: FNV-1a with MurmurHash3's last step. */
function hashed(text) {
  let hash = 0x811c9dc5;
  for (const character of text) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/* The trials in the rater's order, each with its sides: question by question, as they are listed. */
function ordered() {
  const drawn = (what, trial) => hashed([data.study, data.seed, rater, what, ...trial].join("|"));
  const questions = Object.keys(data.questions);
  return data.trials
    .map((trial) => ({ trial, block: questions.indexOf(trial[0]), place: drawn("order", trial) }))
    .sort((a, b) => a.block - b.block || a.place - b.place)
    .map(({ trial }) => {
      const [question, item, first, second] = trial, isTurned = drawn("side", trial) % 2;
      return { key: trial.join("|"), question, item, left: isTurned ? second : first, right: isTurned ? first : second };
    });
}

const place = () => `moongate-study-${data.study}-${rater}`;

function keep() {
  try { localStorage.setItem(place(), JSON.stringify(answers)); isKept = true; } catch { isKept = false; }
  byId("unkept").hidden = isKept;
}

function kept() {
  try { return JSON.parse(localStorage.getItem(place())) || {}; } catch { return {}; }
}

function begin(event) {
  event.preventDefault();
  rater = byId("rater").value.replace(/\s+/g, " ").replace(INVISIBLE, "").trim();
  if (!/[^\u200c\u200d]/u.test(rater)) return;
  answers = kept();
  order = ordered();
  byId("begin").hidden = true;
  byId("saving").hidden = false;
  keep();
  show(next(0));
}

/* The first trial from one on that has no answer; the number of all if there is none. */
function next(from) {
  for (let at = from; at < order.length; at++) if (!answers[order[at].key]) return at;
  return from > 0 ? next(0) : order.length;
}

function picture(image, name) { image.src = data.files[name]; }

function show(at) {
  shown = at;
  const isDone = at >= order.length, count = order.filter((one) => answers[one.key]).length;
  byId("trial").hidden = isDone;
  byId("end").hidden = !isDone;
  byId("save").classList.toggle("strong", isDone);
  if (isDone) { byId("save").focus(); return; }
  const { question, item, left, right } = order[at];
  byId("bar").max = order.length;
  byId("bar").value = count;
  byId("count").textContent = `${count} of ${order.length} answered`;
  byId("question").textContent = data.questions[question];
  byId("prompt").textContent = question === "text" ? data.items[item].prompt : "";
  byId("prompt").hidden = question !== "text";
  const photos = question === "image" ? data.items[item].photos : [];
  byId("targets").hidden = !photos.length;
  byId("targets").replaceChildren(...photos.map((name, number) => {
    const image = new Image();
    image.alt = `target image ${number + 1}`;
    picture(image, name);
    return image;
  }));
  picture(byId("left-picture"), data.pictures[left]);
  picture(byId("right-picture"), data.pictures[right]);
  byId("back").disabled = at === 0;
}

function choose(choice) {
  if (byId("trial").hidden) return;
  const { key, question, left, right } = order[shown];
  answers[key] = { question, left, right, choice, time: new Date().toISOString() };
  byId("saved").textContent = "";
  keep();
  show(next(shown + 1));
}

function back() {
  if (!byId("trial").hidden && shown > 0) show(shown - 1);
}

function save() {
  const content = { format: data.format, version: 1, study: data.study, rater, answers: Object.values(answers) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `answers-${rater.replace(/[^\p{L}\p{N}]+/gu, "-") || "rater"}-${data.study}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  byId("saved").textContent = `Saved ${content.answers.length} answers as ${link.download}.`;
}

byId("form").addEventListener("submit", begin);
byId("left").addEventListener("click", () => choose("left"));
byId("right").addEventListener("click", () => choose("right"));
byId("skip").addEventListener("click", () => choose("skip"));
byId("back").addEventListener("click", back);
byId("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.tagName === "INPUT") return;
  const does = { 1: () => choose("left"), 2: () => choose("right"), s: () => choose("skip"), b: back };
  const action = does[event.key.toLowerCase()];
  if (action && !byId("trial").hidden) { event.preventDefault(); action(); }
});
window.addEventListener("beforeunload", (event) => { if (!isKept && Object.keys(answers).length) event.preventDefault(); });
