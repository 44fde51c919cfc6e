// The server's answers. The bearer token is in sessionStorage: this tab's, until it is closed.

const KEY = "qkvshare token";
const form = document.getElementById("ask");
const field = document.getElementById("token");

/** JSON at `path`; where the server wants a token, the user is asked for it first. */
export async function get(path) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    const answer = await fetch(path, { headers, cache: "no-store" }).catch(() => {
      throw new Error("The server does not answer.");
    });
    if (answer.status !== 401) return read(answer);
    await ask(token !== null);
  }
}

async function read(answer) {
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  throw new Error(content.error?.message ?? `the server answered ${answer.status} ${answer.statusText}`);
}

function ask(again) {
  sessionStorage.removeItem(KEY);
  document.getElementById("why").textContent = again ? "The server does not know this token." : "";
  document.body.classList.add("asking");
  form.hidden = false;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      form.hidden = true;
      document.body.classList.remove("asking");
      resolve();
    };
  });
}
