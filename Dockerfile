# cfproxy as a container: docker build -t cfproxy .
#
# Configured by environment variables alone (see docs/deploy). A volume stores the login; the root file system may
# be read-only. Python 3.11 is the fastest for this program.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
# Tools first, because they change least; locked by hash.
COPY .ci/requirements-build.lock .ci/
RUN python3 -m venv /tools && /tools/bin/pip install --quiet --no-cache-dir --only-binary :all: \
    --require-hashes -r .ci/requirements-build.lock
COPY requirements.lock ./
RUN python3 -m venv --without-pip /opt/cfproxy && /tools/bin/pip --python /opt/cfproxy/bin/python install \
    --quiet --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY cfproxy cfproxy
RUN /tools/bin/python -m build --no-isolation --wheel --outdir /dist . \
    && /tools/bin/pip --python /opt/cfproxy/bin/python install --quiet --no-cache-dir --no-deps /dist/*.whl \
    && /tools/bin/cyclonedx-py environment --output-reproducible --of JSON \
       -o /opt/cfproxy/sbom.cdx.json /opt/cfproxy/bin/python \
    && /opt/cfproxy/bin/python -m compileall -q /opt/cfproxy/lib \
    && mkdir -p -m 0770 /var/lib/cfproxy

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="cfproxy" \
      org.opencontainers.image.description="A local reverse proxy that gives any HTTP client access to the Creative Force Gateway API without OAuth code" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /opt/cfproxy /opt/cfproxy
# Group 0, in which OpenShift and `docker run -u UID` put any user id.
COPY --from=build --chown=65532:0 /var/lib/cfproxy /var/lib/cfproxy
# A folder inside the volume, so that its mode does not depend on the volume's.
ENV PATH=/opt/cfproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/cfproxy \
    CFPROXY_STORE=file:/var/lib/cfproxy/logins
WORKDIR /var/lib/cfproxy
VOLUME /var/lib/cfproxy
USER 65532:65532
EXPOSE 8080 8081
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["cfproxy", "wait", "--for", "live", "--timeout", "5"]
ENTRYPOINT ["cfproxy"]
CMD ["serve"]
