// Runs the script of a page without a browser: `node document.js PAGE MEMORY` prints what its rollouts say, as JSON.
// The document here is as much of one as that script asks for.
const fs = require("fs");

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], own: "", dataset: {}, className: "", classList: { add() {}, remove() {} } });
  }
  set textContent(text) { this.own = String(text); this.children = []; }
  get textContent() { return this.own + this.children.map((child) => child.textContent ?? child).join(""); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; this.own = ""; }
  setAttribute() {}
  addEventListener() {}
}

const [page, memory, answer] = process.argv.slice(2);
const scripts = [...fs.readFileSync(page, "utf8").matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)].map((match) => match[1]);
const data = JSON.parse(scripts[0]);
if (answer) Object.assign(data.views[0].answers[0], JSON.parse(answer));
const elements = { "answers-data": { textContent: JSON.stringify(data) }, answers: new Element("div") };
global.document = {
  documentElement: new Element("html"),
  querySelectorAll: () => [],
  getElementById: (id) => elements[id],
  createElement: (tag) => new Element(tag),
};
global.sessionStorage = { getItem: () => memory, setItem() {} };
eval(scripts[1]);

const cards = [];
const walk = (element) => {
  if (element.className === "answer") cards.push(element);
  (element.children ?? []).forEach(walk);
};
walk(elements.answers);
const marks = (card) => card.children.flatMap((child) => child.children ?? []).filter((child) => "place" in (child.dataset ?? {}));
console.log(JSON.stringify(cards.map((card) => ({ text: card.textContent, marks: marks(card).map((span) => span.className) }))));
