// What a page can do to another server; runs in the page. Each trick has its own path.

const element = (name, attributes) =>
  new Promise((done) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.onload = made.onloadedmetadata = () => done("load");
    made.onerror = () => done("error");
    document.body.append(made);
  });

const submit = (action, method) => {
  const frame = Object.assign(document.createElement("iframe"), { name: `answer-to-${method}` });
  const form = Object.assign(document.createElement("form"), { action, method, target: frame.name });
  form.append(Object.assign(document.createElement("input"), { name: "a", value: "b" }));
  document.body.append(frame, form);
  form.submit();
};

const opened = (made, event) =>
  new Promise((done) => {
    made[event] = () => done("open");
    made.onerror = () => {
      made.close();
      done("error");
    };
  });

const read = async (url, options) => (await fetch(url, options)).text();
const blind = async (url, options) => (await fetch(url, { mode: "no-cors", ...options })).type;

const xhr = (url) =>
  new Promise((done) => {
    const request = new XMLHttpRequest();
    request.onloadend = () => done(`${request.status} ${request.responseText}`);
    request.open("GET", url);
    request.send();
  });

const tricks = {
  image: (url) => element("img", { src: url }),
  script: (url) => element("script", { src: url }),
  stylesheet: (url) => element("link", { rel: "stylesheet", href: url }),
  iframe: (url) => element("iframe", { src: url }),
  object: (url) => element("object", { data: url }),
  video: (url) => element("video", { src: url, preload: "auto" }),
  form: (url) => submit(url, "post"),
  search: (url) => submit(url, "get"),
  "fetch-no-cors": (url) => blind(url),
  "fetch-no-cors-post": (url) => blind(url, { method: "POST", body: "a=b" }),
  "fetch-no-cors-credentials": (url) => blind(url, { credentials: "include" }),
  "fetch-cors": (url) => read(url),
  "fetch-cors-json": (url) =>
    read(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" }),
  "fetch-cors-delete": (url) => read(url, { method: "DELETE" }),
  xhr,
  websocket: (url) => opened(new WebSocket(url.replace("http:", "ws:")), "onopen"),
  "event-source": (url) => opened(new EventSource(url), "onopen"),
  beacon: (url) => navigator.sendBeacon(url, "a=b"),
  popup: (url) => void window.open(url),
};

window.tryAll = async (target) => {
  const tried = Object.entries(tricks).map(async ([name, trick]) => {
    try {
      const silence = new Promise((done) => setTimeout(done, 1500, "silence"));
      return [name, String(await Promise.race([trick(`${target}/${name}`), silence]))];
    } catch (error) {
      return [name, error.name];
    }
  });
  return Object.fromEntries(await Promise.all(tried));
};
