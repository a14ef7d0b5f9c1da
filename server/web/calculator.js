// Arithmetic, read by hand: nothing is ever evaluated as a program.

const TOKEN = /\s*(?:(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)|([a-z]+)|(\*\*|[-+*/%^(),×÷−]))/iy;
const CONSTANTS = { pi: Math.PI, e: Math.E };
const FUNCTIONS = {
  sqrt: Math.sqrt, abs: Math.abs, round: Math.round, floor: Math.floor, ceil: Math.ceil, exp: Math.exp, ln: Math.log,
  log: Math.log10, sin: Math.sin, cos: Math.cos, tan: Math.tan, min: Math.min, max: Math.max, pow: Math.pow,
};
const SPELLINGS = { "×": "*", "÷": "/", "−": "-", "^": "**" };
const MAX_CHARS = 500;

/**
 * Returns the value of an expression as a text.
 * @throws {Error} it is none; the message says where.
 */
export function calculate(expression) {
  if (expression.length > MAX_CHARS) throw new Error(`the expression is longer than ${MAX_CHARS} characters`);
  const reader = new Reader(tokens(expression));
  const value = reader.sum();
  if (reader.peek() !== undefined) throw new Error(`"${reader.peek()}" is not expected there`);
  if (!Number.isFinite(value)) throw new Error("the result is not a number");
  return String(Number(value.toPrecision(12)));
}

function tokens(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  const end = text.trimEnd().length;
  while (TOKEN.lastIndex < end) {
    const at = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (!match) throw new Error(`"${text.slice(at).trim()[0]}" is not arithmetic`);
    found.push(match[1] ?? match[2]?.toLowerCase() ?? SPELLINGS[match[3]] ?? match[3]);
  }
  return found;
}

class Reader {
  constructor(list) {
    this.list = list;
    this.at = 0;
  }

  peek() {
    return this.list[this.at];
  }

  next() {
    const token = this.list[this.at];
    if (token === undefined) throw new Error("the expression ends too early");
    this.at += 1;
    return token;
  }

  expect(token) {
    const found = this.next();
    if (found !== token) throw new Error(`"${token}" is expected instead of "${found}"`);
  }

  sum() {
    let value = this.product();
    while (["+", "-"].includes(this.peek())) value = this.next() === "+" ? value + this.product() : value - this.product();
    return value;
  }

  product() {
    let value = this.signed();
    while (["*", "/", "%"].includes(this.peek())) {
      const operator = this.next();
      const right = this.signed();
      if (operator !== "*" && right === 0) throw new Error("nothing can be divided by zero");
      value = operator === "*" ? value * right : operator === "/" ? value / right : value % right;
    }
    return value;
  }

  signed() {
    if (this.peek() === "-") {
      this.next();
      return -this.signed();
    }
    if (this.peek() === "+") {
      this.next();
      return this.signed();
    }
    const value = this.atom();
    if (this.peek() !== "**") return value;
    this.next();
    return value ** this.signed();
  }

  atom() {
    const token = this.next();
    if (token === "(") {
      const value = this.sum();
      this.expect(")");
      return value;
    }
    if (/^[\d.]/.test(token)) return Number(token);
    if (Object.hasOwn(FUNCTIONS, token)) return this.call(FUNCTIONS[token]);
    if (Object.hasOwn(CONSTANTS, token)) return CONSTANTS[token];
    throw new Error(`"${token}" is unknown`);
  }

  call(apply) {
    this.expect("(");
    const values = [this.sum()];
    while (this.peek() === ",") {
      this.next();
      values.push(this.sum());
    }
    this.expect(")");
    return apply(...values);
  }
}
