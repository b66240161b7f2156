// Preloaded into NNI's manager: whatever address a server of it asks for, it listens on this machine alone.
"use strict";
const { Server } = require("node:net");
const listen = Server.prototype.listen;

Server.prototype.listen = function (...given) {
    const callback = given.find((argument) => typeof argument === "function");
    const first = given[0];
    const options = typeof first === "object" && first !== null ? first : { port: first };
    const hasPort = options.port === undefined || options.port === null || !Number.isNaN(Number(options.port));
    if (options.path !== undefined || options.fd !== undefined || options._handle || !hasPort) {
        return listen.apply(this, given); // no network address: a socket file or an inherited handle
    }
    const port = typeof options.port === "function" ? 0 : options.port ?? 0;
    return listen.call(this, { ...options, port, host: "127.0.0.1" }, callback);
};
