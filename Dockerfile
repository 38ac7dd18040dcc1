# docker build -t conserver . && docker run -v conserver-data:/data conserver
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/conserver
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conserver conserver
COPY links links
COPY storages storages
RUN /opt/conserver/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .[all]
# The final image installs nothing, so it needs no pip.
RUN /opt/conserver/bin/pip uninstall --yes --quiet pip

FROM python:3.13-slim
# /app/data leads to the volume, so that relative paths of config.yml, such as data/vcons, are kept as well.
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin conserver \
    && install -d -o conserver -g conserver -m 0700 /data \
    && install -d /app \
    && ln -s /data /app/data
COPY --from=build /opt/conserver /opt/conserver
COPY config.yml /app/config.yml
COPY examples /app/examples
WORKDIR /app
USER conserver
ENV PATH=/opt/conserver/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CONSERVER_DATA_DIR=/data
VOLUME /data
# Healthy is: workers run and the Redis-compatible server answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('CONSERVER_METRICS_PORT', '9464') + '/readyz', timeout=4)"]
# No shell in between: SIGTERM reaches the conserver, which finishes what is running (CONSERVER_DRAIN_SECS, 30 s).
STOPSIGNAL SIGTERM
ENTRYPOINT ["conserver"]
CMD ["run"]
