"""OAuth 2.0: access tokens, their refresh, logging in and out.

Other packages use `token_source.TokenSource` for tokens, `login.{start, finish, login_app, logout}`, the data
classes of `models`, and `expiry` for warnings. `token_endpoint.HttpTokenEndpoint` is the client for the
accounts server; stores implement `interfaces.TokenStore`.
"""
