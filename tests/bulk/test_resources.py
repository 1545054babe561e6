"""Each loadable resource has all that CONTRIBUTING.md asks of it."""

from agentmem_site import samples
from agentmem_site.api.bulk import SCOPED_BY, BulkViewSet
from agentmem_site.services.loads import EXPORTED, LINKS, RECORDS, RESOURCES
from tests.api.routes import ROUTES


def test_its_rows_can_be_restored():
    specs = [*RESOURCES.values(), *(s.children.spec for s in RESOURCES.values() if s.children)]
    missing = {spec.model.__name__ for spec in specs if spec.model not in RECORDS}
    assert not missing, f"RECORDS of agentmem_site/services/loads.py has no Records of {missing}"


def test_it_is_exported():
    missing = {*RESOURCES, *LINKS} - {*EXPORTED}
    assert not missing, f"{missing}: not in EXPORTED of agentmem_site/services/loads.py"


def test_it_has_a_route_and_an_import_page():
    missing = RESOURCES.keys() - SCOPED_BY.keys()
    assert not missing, f"{missing}: no BulkViewSet above SCOPED_BY in agentmem_site/api/bulk.py"
    routed = {route.view.loads for route in ROUTES if issubclass(route.view, BulkViewSet)}
    missing = RESOURCES.keys() - routed
    assert not missing, f"{missing}: no route of the BulkViewSet in agentmem_site/api/router.py"


def test_it_has_samples():
    missing = RESOURCES.keys() - samples.RESOURCES.keys()
    assert not missing, f"{missing}: no generator in RESOURCES of agentmem_site/samples"
