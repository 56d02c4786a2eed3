# Not built in CI: no container engine runs there. Built and run by hand before a release.
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir "uv>=0.9"
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY analyzers analyzers
COPY service service
COPY config config
ENV UV_PROJECT_ENVIRONMENT=/opt/serinus UV_COMPILE_BYTECODE=1
RUN uv sync --locked --no-dev --no-editable --extra postgres --extra otel

FROM python:3.13-slim
# The same number as in the chart; it owns nothing in the image.
USER 65532:65532
COPY --from=build /opt/serinus /opt/serinus
ENV PATH=/opt/serinus/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8080
ENTRYPOINT ["serinus"]
CMD ["serve", "--config", "/etc/serinus/serinus.yaml"]
