"use strict";
(() => {
  document.documentElement.classList.add("script");
  const remembered = (key) => { try { return Object(JSON.parse(sessionStorage.getItem(key))); } catch { return {}; } };
  const remember = (key, value) => {
    try { sessionStorage.setItem(key, JSON.stringify(value)); } catch { /* a page from disk may have no memory */ }
  };

  // --- tables: a click, or Enter, on a heading sorts by it; once more turns the order around
  const sorted = remembered("tutelage-tables");
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    const sort = (column, down) => {
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key.replace("-inf", "-Infinity");  // where there is no number
      const order = (a, b) => (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b) || 0);
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      sort(column, down);
      sorted[table.id] = { ...sorted[table.id], column, down };
      remember("tutelage-tables", sorted);
    }));
    const before = sorted[table.id] || {};
    if (headings[before.column]) sort(before.column, before.down);
  }

  // --- a filter above the table of runs: words that a row has, -words that it has not, and column>number
  const runs = document.getElementById("table-runs");
  if (runs) {
    const plain = (text) => text.toLowerCase().replace(/\s|%/g, "");
    const columns = [...runs.tHead.rows[0].cells].map((cell) => plain(cell.textContent));
    const rows = [...runs.tBodies[0].rows];
    const box = document.createElement("p");
    box.className = "filter";
    box.innerHTML = '<label>Filter <input type="search" autocomplete="off" spellcheck="false" '
      + 'aria-describedby="filter-help"></label> <output aria-live="polite"></output>'
      + '<small id="filter-help">Words that a row has; -word: that it has not; last&gt;60, seed=1: a column’s number.</small>';
    const [input, shown] = [box.querySelector("input"), box.querySelector("output")];
    const COMPARED = { ">": (a, b) => a > b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, "<=": (a, b) => a <= b,
      "=": (a, b) => a === b };
    const test = (word) => {
      const [, name, sign, number] = word.match(/^([^<>=]+)([<>]=?|=)(-?[\d.]+)$/) || [];
      const column = name === undefined ? -1 : columns.findIndex((each) => each.includes(plain(name)));
      if (column >= 0) {
        return (row) => row.cells[column].dataset.key !== "" && COMPARED[sign](Number(row.cells[column].dataset.key), Number(number));
      }
      if (word === "-") return () => true;  // the rest is still being typed
      const without = word.startsWith("-");
      return (row) => row.textContent.toLowerCase().includes(without ? word.slice(1) : word) !== without;
    };
    const filter = () => {
      const tests = input.value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
      for (const row of rows) row.hidden = !tests.every((passes) => passes(row));
      shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
      remember("tutelage-filter", { text: input.value });
    };
    input.value = remembered("tutelage-filter").text || "";
    input.addEventListener("input", filter);
    runs.parentElement.before(box);
    filter();
  }

  // --- answers side by side
  const data = JSON.parse(document.getElementById("answers-data").textContent);
  const place = document.getElementById("answers");
  if (!data.views.length) return;
  const memory = remembered("tutelage");
  const state = { step: memory.step ?? data.views[0].step, answer: memory.answer ?? 0, colour: memory.colour ?? "fate" };
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const number = (value) => (value === null ? "not finite" : value.toFixed(3));
  const at = (tokens, column, i) => (tokens[column] ? tokens[column][i] : undefined);

  // How strongly a token is marked: 0 to 3, each with its own line below the token beside the colour. JSON has no
  // infinite numbers: null stands for one, such as the log-probability of what the teacher rules out.
  const level = (value, low, middle, high) => (value === null ? 3 : (value > low) + (value > middle) + (value > high));
  const less = (a, b) => (a === null || b === null ? null : a - b);
  const COLOURS = {
    fate: { title: "kept or replaced", has: (t) => t.replaced,
      mark: (t, i) => (at(t, "replaced", i) ? "replaced" : ""),
      legend: [["", "kept draft, or drawn by the student"], ["replaced", "the draft was refused, this drawn in its place"]] },
    teacher: { title: "teacher log-prob", has: (t) => t.teacher_logprob,
      mark: (t, i) => "level" + level(less(0, at(t, "teacher_logprob", i)), 0.1, 1, 4),
      legend: [["level0", "above −0.1"], ["level1", "−0.1 to −1"], ["level2", "−1 to −4"], ["level3", "below −4 nats"]] },
    kl: { title: "KL to the student", has: (t) => t.kl,
      mark: (t, i) => "level" + level(at(t, "kl", i), 0.001, 0.01, 0.04),
      legend: [["level0", "below 0.001"], ["level1", "to 0.01"], ["level2", "to 0.04"], ["level3", "above 0.04 nats"]] },
    gap: { title: "log p − log q", has: (t) => t.teacher_logprob && t.student_logprob,
      mark: (t, i) => "level" + level(less(at(t, "student_logprob", i), at(t, "teacher_logprob", i)), 0.1, 1, 4),
      legend: [["level0", "below 0.1"], ["level1", "to 1"], ["level2", "to 4"], ["level3", "above 4 nats: the student's own idea"]] },
  };

  const describe = (tokens, i) => [
    `token ${i + 1}: “${(tokens.text[i] || "(stop, or part of a character)").replaceAll("\n", "⏎")}”`,
    tokens.replaced && (tokens.replaced[i] ? "replaced" : "kept"),
    tokens.teacher_logprob && `teacher log q ${number(at(tokens, "teacher_logprob", i))}`,
    tokens.student_logprob && `student log p ${number(at(tokens, "student_logprob", i))}`,
    tokens.kl && `KL ${number(at(tokens, "kl", i))}`,
    tokens.blend && `beta ${number(at(tokens, "blend", i))}`,
    tokens.teacher_entropy && `teacher entropy ${number(at(tokens, "teacher_entropy", i))}`,
  ].filter(Boolean).join(", ");

  const answerText = (tokens, record, label) => {
    const box = make("div", undefined, "text");
    const detail = make("p", "Point at a token, or step through them with the arrow keys.", "detail");
    detail.setAttribute("aria-live", "polite");
    const spans = tokens.text.map((piece, i) => {
      const mark = COLOURS[state.colour]?.has(tokens) ? COLOURS[state.colour].mark(tokens, i) : "";
      const last = i + 1 === tokens.text.length && record.finished;
      const span = make("span", piece || (last ? "[stop]" : "·"), mark);
      span.dataset.place = i;
      return span;
    });
    box.append(...spans);
    if (record.response.length > tokens.text.join("").length) box.append(make("em", " … (only the first tokens are logged)"));
    let current = -1;
    const show = (i) => {
      if (i < 0 || i >= spans.length) return;
      spans[current]?.classList.remove("current");
      spans[(current = i)].classList.add("current");
      detail.textContent = describe(tokens, i);
    };
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `answer of ${label}: ${record.response}. Arrow keys step through its tokens.`);
    box.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) { event.preventDefault(); show(current + move); spans[current]?.scrollIntoView({ block: "nearest" }); }
    });
    for (const kind of ["click", "mouseover"]) {
      box.addEventListener(kind, (event) => event.target.dataset.place && show(Number(event.target.dataset.place)));
    }
    return [box, detail];
  };

  const choices = (title, items, chosen, choose) => {
    const group = make("div", undefined, "choices");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", title);
    group.append(make("span", title));
    for (const [value, text] of items) {
      const button = make("button", text);
      button.type = "button";
      button.dataset.choice = `${title}:${value}`;
      button.setAttribute("aria-pressed", String(value === chosen));
      button.addEventListener("click", () => {
        choose(value);
        draw();
        place.querySelector(`[data-choice="${CSS.escape(`${title}:${value}`)}"]`)?.focus();
      });
      group.append(button);
    }
    return group;
  };

  const draw = () => {
    remember("tutelage", state);
    const steps = [...new Set(data.views.map((view) => view.step))];
    if (!steps.includes(state.step)) state.step = steps[0];
    const views = data.views.filter((view) => view.step === state.step);
    if (!views[state.answer]) state.answer = 0;
    const view = views[state.answer];
    const logged = view.answers.filter((record) => record && record.tokens);
    const colours = Object.entries(COLOURS).filter(([, colour]) => logged.some((record) => colour.has(record.tokens)));
    if (colours.length && !colours.some(([name]) => name === state.colour)) state.colour = colours[0][0];
    const legend = make("p", "Tokens: ", "legend muted text");
    for (const [mark, text] of colours.length ? COLOURS[state.colour].legend : []) {
      legend.append(make("span", text, mark), " ");
    }
    const filled = (card, record, i) => {
      card.append(make("h3", data.runs[i]));
      if (!record) { card.append(make("p", "Nothing logged for this prompt at this step.", "muted")); return card; }
      const ending = record.finished ? "ended by itself" : "cut by the length limit";
      const line = make("p", undefined, "muted");
      if (record.correct !== undefined) {
        line.append(make("span", record.correct ? "✓ right" : "✗ wrong", `verdict ${record.correct ? "right" : "wrong"}`), ", ");
      }
      line.append(ending);
      card.append(line);
      if (record.tokens) card.append(...answerText(record.tokens, record, data.runs[i]));
      else card.append(make("div", record.response, "text"));
      return card;
    };
    const cards = view.answers.map((record, i) => {
      const card = make("article", undefined, "answer");
      try { return filled(card, record, i); } catch (problem) {  // one bad answer takes no other one with it
        card.replaceChildren(make("h3", data.runs[i]), make("p", `This answer cannot be shown: ${problem.message}`, "muted"));
        return card;
      }
    });
    const answers = make("div", undefined, "answers");
    answers.append(...cards);
    const reference = view.answers.find(Boolean).answer;
    place.replaceChildren(
      choices("step", steps.map((step) => [step, String(step)]), state.step, (value) => { state.step = value; }),
      choices("answer", views.map((v, i) => [i, `prompt ${v.prompt_number}, sample ${v.sample}`]), state.answer,
        (value) => { state.answer = value; }),
      ...(colours.length ? [choices("colour", colours.map(([name, c]) => [name, c.title]), state.colour,
        (value) => { state.colour = value; }), legend] : []),
      make("p", view.prompt, "prompt"),
      ...(reference === null || reference === undefined ? [] : [make("p", `Right answer: ${reference}`, "muted")]),
      answers,
    );
  };
  draw();
})();
