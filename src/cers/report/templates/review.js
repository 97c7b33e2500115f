"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ASPECTS = ["texture", "boundary", "context", "summary"];
  const VERDICTS = ["right", "wrong", "unsure"];
  const header = JSON.parse(document.body.dataset.header);
  const key = `cers-review-${header.sample}`;
  const articles = [...document.querySelectorAll("article.judge")];
  const names = articles.map((article) => article.dataset.name);
  let state = { reviewer: "", verdicts: {}, notes: {}, at: 0 };
  let aspect = 0;
  let kept = true;

  const fieldset = (index, which) => articles[index].querySelectorAll("fieldset")[which];
  const given = (index) => state.verdicts[names[index]] ?? {};
  const count = (index) => Object.keys(given(index)).length;

  function keep() {
    try {
      localStorage.setItem(key, JSON.stringify(state));
    } catch {
      if (kept) say("This browser keeps nothing for this page: save often.");
      kept = false;
    }
  }

  function say(text) {
    $("message").textContent = text;
  }

  function adopt(found) {
    const verdicts = {};
    for (const name of names) {
      const whole = Object.entries(found.verdicts?.[name] ?? {});
      const sound = whole.filter(([a, v]) => ASPECTS.includes(a) && VERDICTS.includes(v));
      if (sound.length) verdicts[name] = Object.fromEntries(sound);
    }
    const notes = {};
    for (const name of names) if (found.notes?.[name]) notes[name] = String(found.notes[name]);
    const at = Number.isInteger(found.at) ? Math.min(Math.max(found.at, 0), names.length - 1) : 0;
    state = { reviewer: String(found.reviewer ?? ""), verdicts, notes, at };
  }

  function show() {
    articles.forEach((article, index) => {
      article.classList.toggle("current", index === state.at);
      ASPECTS.forEach((name, which) => {
        const active = index === state.at && which === aspect;
        fieldset(index, which).classList.toggle("active", active);
        for (const input of fieldset(index, which).querySelectorAll("input")) {
          input.checked = given(index)[name] === input.value;
        }
      });
      const note = article.querySelector("textarea");
      if (note !== document.activeElement) note.value = state.notes[names[index]] ?? "";
      const spot = $("map").children[index].firstChild;
      const values = Object.values(given(index));
      const whole = values.length === ASPECTS.length;
      spot.className = values.includes("wrong") ? "flawed" : whole ? "whole" : values.length ? "part" : "";
      spot.toggleAttribute("aria-current", index === state.at);
      spot.setAttribute("aria-label", `Text ${index + 1}, ${values.length} of ${ASPECTS.length} aspects judged`);
    });
    const done = names.filter((_, index) => count(index) === ASPECTS.length).length;
    $("done").textContent = done;
    $("progress").value = done;
    if ($("reviewer") !== document.activeElement) $("reviewer").value = state.reviewer;
  }

  function go(index, top = true) {
    state.at = Math.min(Math.max(index, 0), names.length - 1);
    const open = ASPECTS.findIndex((name) => !(name in given(state.at)));
    aspect = open < 0 ? 0 : open;
    keep();
    show();
    if (top) window.scrollTo(0, 0);
  }

  function judge(index, which, verdict) {
    const verdicts = { ...given(index) };
    if (verdict) verdicts[ASPECTS[which]] = verdict;
    else delete verdicts[ASPECTS[which]];
    if (Object.keys(verdicts).length) state.verdicts[names[index]] = verdicts;
    else delete state.verdicts[names[index]];
  }

  function answer(verdict) {
    judge(state.at, aspect, verdict);
    if (!verdict) return turn(aspect);
    if (aspect < ASPECTS.length - 1) return turn(aspect + 1);
    if (state.at < names.length - 1) return go(state.at + 1);
    keep();
    show();
    if (names.every((_, index) => count(index) === ASPECTS.length)) say("All judged. Save the file now.");
  }

  function turn(which) {
    aspect = Math.min(Math.max(which, 0), ASPECTS.length - 1);
    keep();
    show();
    fieldset(state.at, aspect).scrollIntoView({ block: "nearest" });
  }

  function rest() {
    ASPECTS.forEach((name, which) => name in given(state.at) || judge(state.at, which, "right"));
    go(state.at + 1);
  }

  function unjudged() {
    const order = names.map((_, step) => (state.at + 1 + step) % names.length);
    const found = order.find((index) => count(index) < ASPECTS.length);
    if (found === undefined) say("All judged. Save the file now.");
    else go(found);
  }

  function save() {
    if (!state.reviewer.trim()) {
      say("Enter your name first: it tells the files of two reviewers apart.");
      $("reviewer").focus();
      return;
    }
    const { verdicts, notes } = state;
    const content = { ...header, reviewer: state.reviewer.trim(), saved: new Date().toISOString(), verdicts, notes };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
    link.download = `verdicts-${content.reviewer.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(`Saved as ${link.download}.`);
  }

  async function open(file) {
    try {
      const found = JSON.parse(await file.text());
      if (found.format !== header.format) say(`${file.name} is no file of verdicts.`);
      else if (found.sample !== header.sample) say(`${file.name} belongs to another review page.`);
      else if (Object.keys(state.verdicts).length && !confirm("Replace the verdicts on this page?")) return;
      else {
        adopt(found);
        go(0);
        say(`Opened ${file.name}.`);
      }
    } catch {
      say(`${file.name} is no file of verdicts.`);
    }
  }

  const keys = {
    1: () => answer("right"),
    2: () => answer("wrong"),
    3: () => answer("unsure"),
    0: () => answer(null),
    a: rest,
    u: unjudged,
    o: () => document.body.classList.toggle("plain"),
    n: () => articles[state.at].querySelector("textarea").focus(),
    s: save,
    ArrowLeft: () => go(state.at - 1),
    ArrowRight: () => go(state.at + 1),
    ArrowUp: () => turn(aspect - 1),
    ArrowDown: () => turn(aspect + 1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, input[type=text]")) return;
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  articles.forEach((article, index) => {
    article.querySelectorAll("fieldset").forEach((group, which) => {
      group.addEventListener("change", (event) => {
        judge(index, which, event.target.value);
        aspect = which;
        keep();
        show();
      });
    });
    article.querySelector("textarea").addEventListener("input", (event) => {
      if (event.target.value.trim()) state.notes[names[index]] = event.target.value;
      else delete state.notes[names[index]];
      keep();
    });
    article.querySelector(".previous").addEventListener("click", () => go(index - 1));
    article.querySelector(".next").addEventListener("click", () => go(index + 1));
    const spot = document.createElement("button");
    spot.type = "button";
    spot.textContent = index + 1;
    spot.addEventListener("click", () => go(index));
    $("map").append(document.createElement("li"));
    $("map").lastChild.append(spot);
  });
  $("reviewer").addEventListener("input", (event) => {
    state.reviewer = event.target.value;
    keep();
  });
  $("save").addEventListener("click", save);
  $("open").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = "";
  });

  document.body.classList.add("judging");
  try {
    adopt(JSON.parse(localStorage.getItem(key)) ?? {});
  } catch {
    kept = true;
  }
  go(state.at, false);
})();
