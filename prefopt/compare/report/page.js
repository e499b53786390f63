// What the page does: draws the charts, hides methods, sorts tables, filters samples, copies text.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("live");

// --- Charts. Colours of text and grid come from the style sheet, so that themes and print work.
const specs = JSON.parse(document.getElementById("specs").textContent);
const font = getComputedStyle(document.body).fontFamily;
const config = {
  background: null, font, view: { stroke: null }, legend: { disable: true },
  axis: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelFlush: false },
  autosize: { type: "fit-x", contains: "padding" },
};
const views = [];
const hidden = new Set();

async function draw(figure) {
  if (figure.dataset.drawn) return;
  figure.dataset.drawn = "yes";
  const place = figure.querySelector(".drawing");
  const labels = Math.min(220, Math.round(place.clientWidth * 0.36));
  const own = { ...config, axisY: { labelLimit: labels }, axisX: { labelOverlap: true, tickCount: { expr: "ceil(width / 70)" } } };
  const spec = { width: "container", ...specs[figure.dataset.chart] };
  spec.params = (spec.params ?? []).map((it) => it.name === "letters" ? { ...it, value: Math.max(8, Math.floor(labels / 8.5)) } : it);
  try {
    // `ast`: expressions are interpreted, so that the page need not allow scripts to make scripts.
    const result = await vegaEmbed(place, spec, { actions: false, renderer: "svg", ast: true, config: own });
    views.push(result.view);
    if (hidden.size) tell(result.view);
  } catch (error) {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    console.error(error);
  }
}

function tell(view) {
  view.signal("hidden", [...hidden]).runAsync();
}

async function drawOpen(root) {
  for (const figure of all("figure[data-chart]", root)) {
    if (!figure.closest("details:not([open])")) await draw(figure);
  }
}

for (const details of all("details")) {
  details.addEventListener("toggle", () => { if (details.open) drawOpen(details); });
}

// --- The key: which methods the charts show.
function show(buttons, shown) {
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(shown));
    if (shown) hidden.delete(button.dataset.method); else hidden.add(button.dataset.method);
  }
  views.forEach(tell);
}
for (const key of all("div.methods")) {
  const buttons = all("[data-method]", key);
  for (const button of buttons) {
    button.addEventListener("click", () => show([button], hidden.has(button.dataset.method)));
  }
  key.querySelector(".all").addEventListener("click", () => show(buttons, true));
  key.querySelector(".none").addEventListener("click", () => show(buttons, false));
}

// --- Tables: a click on a head sorts, first by what is better, then the other way.
function sortBy(table, head) {
  const body = table.tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending" && column > 0
    || column === 0 && head.getAttribute("aria-sort") === "ascending";
  const key = (row) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent.trim();
    const value = parseFloat(cell.dataset.value);
    return Number.isNaN(value) ? null : value;
  };
  const rows = [...body.rows].sort((one, other) => {
    const a = key(one), b = key(other);
    if (a === null || b === null) return (a === null) - (b === null);
    const order = column === 0 ? a.localeCompare(b) : a - b;
    return down ? -order : order;
  });
  all("th[aria-sort]", table).forEach((it) => it.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
}
for (const button of all("table.results .sort")) {
  button.addEventListener("click", () => sortBy(button.closest("table"), button.closest("th")));
}

// --- Samples: filters by method, temperature and text; some prompts at a time.
const AT_ONCE = 5;
function samples(form) {
  const section = form.closest("section"), more = section.querySelector(".more");
  const prompts = all(".prompt", section).map((element) => ({
    element,
    text: element.querySelector("h3 .text").textContent.toLowerCase(),
    answers: all(".answer", element).map((it) => ({
      element: it, method: it.dataset.method, temperature: it.dataset.temperature,
      text: it.querySelector(".text").textContent.toLowerCase(),
    })),
  }));
  const count = prompts.reduce((sum, prompt) => sum + prompt.answers.length, 0);
  let most = AT_ONCE;

  function update() {
    const words = form.elements.text.value.trim().toLowerCase();
    const temperature = form.elements.temperature?.value ?? "";
    const methods = new Set(all("[name=method]:checked", form).map((box) => box.value));
    let fitting = 0, answers = 0;
    for (const prompt of prompts) {
      const inPrompt = prompt.text.includes(words);
      let found = 0;
      for (const answer of prompt.answers) {
        const fits = methods.has(answer.method) && (inPrompt || answer.text.includes(words))
          && (!temperature || !answer.temperature || answer.temperature === temperature);
        answer.element.hidden = !fits;
        found += fits;
      }
      fitting += found > 0;
      answers += found;
      prompt.element.hidden = !found || fitting > most;
    }
    more.hidden = fitting <= most;
    section.querySelector(".count").textContent =
      `${answers} of ${count} answers to ${fitting} of ${prompts.length} prompts`
      + (more.hidden ? "" : `; the first ${most} prompts are shown`);
  }

  const change = () => { most = AT_ONCE; update(); };
  form.addEventListener("input", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [name, ticked] of [["all", true], ["none", false]]) {
    form.querySelector(`.${name}`).addEventListener("click", () => {
      for (const box of all("[name=method]", form)) box.checked = ticked;
      change();
    });
  }
  more.addEventListener("click", () => { most += AT_ONCE; update(); });
  update();
}
all("form.filters").forEach(samples);

// --- Copying. Where the browser has no clipboard for files, the text is selected instead.
for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

await drawOpen(document);
document.documentElement.dataset.ready = "yes";
