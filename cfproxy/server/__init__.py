"""The HTTP server: listening sockets, client connections, requests and responses.

It knows HTTP/1.1 and limits, but not what a request is for. Other packages use `listener.ListeningSockets`,
`connection.ClientConnection` with a `request.RequestHandler` for each request, `response.Response`,
`connection_limits.Connections`, `local_names.LocalNames` and `problem_details.render_problem`.
"""
