from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from agentmem_site.api import health, router

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("api/v1/", include(router)),
    re_path(r"^api/schema/?$", SpectacularJSONAPIView.as_view(), name="schema"),
    re_path(r"^api/docs/?$", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    re_path(r"^health/live/?$", health.live),
    re_path(r"^health/ready/?$", health.ready),
]

handler400 = "agentmem_site.api.problems.bad_request"
handler404 = "agentmem_site.api.problems.not_found"
handler500 = "agentmem_site.api.problems.server_error"
